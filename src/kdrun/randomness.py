"""All randomness is a function of (seed, epoch, step, purpose).

Nothing draws from a generator that lives from one step to the next, so a resumed run needs no generator's
state, and which students train together changes no draw of any of them.
"""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, for instance ``derive(0, "augment", epoch, step)``."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose; draws are made on the CPU so that every device sees the same."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


def seed_device(seed: int, device: torch.device) -> None:
    """Seed what dropout and the like draw from on this device.

    ``torch.manual_seed`` would note a traceback for every device that is not there, at every call.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
