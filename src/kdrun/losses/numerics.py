"""Arithmetic that the losses share: full precision, constants, and gradients that stay finite."""

from __future__ import annotations

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """``x`` in float32 where it is of half precision, else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def fixed(x: Tensor) -> Tensor:
    """The teacher's side of a loss: ``x`` in full precision and without a gradient."""
    return full(x.detach())


def exact(x: Tensor) -> torch.autocast:
    """A context without autocast, which would compute products of matrices like ``x`` in half precision."""
    return torch.autocast(x.device.type, enabled=False)


def unit(x: Tensor) -> Tensor:
    """``x`` / max(‖``x``‖₂, 1e-12) along the last dimension.

    A zero vector stays zero and gets a zero gradient, not one of 1e12.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp_min(1e-12).masked_fill(length == 0, torch.inf)
