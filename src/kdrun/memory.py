"""The memory of a device: how much of it is free, what it means when it runs out, and letting go of it."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kdrun.errors import OutOfMemory
from kdrun.machine import available_memory, lacks_memory, return_freed_memory, told_lack, total_memory

RESERVE = 0.1
"""The share of the free memory that nobody plans with: buffers of single operations, and gaps between tensors."""

DATA_SHARE = 0.25
"""The share of the memory that samples, or what was computed of them, may take; more is read while it is used."""

OF_GPU = ("out of memory", "ALLOC_FAILED")
"""What torch's errors say of a GPU, where they have no class of their own."""
BEYOND_COUNTING = ("calculation overflowed", "multiplication overflow")
"""What they say of so many bytes that their number is too large."""


def free_memory(device: torch.device) -> int:
    """Bytes of a device that can be planned with: what torch keeps in store is free, too."""
    if device.type == "cuda":
        in_store = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + in_store
    else:
        free = available_memory()
    return int((1 - RESERVE) * free)


def room_for_data(device: torch.device) -> int:
    """Bytes that one set of samples may take, of all memory of the machine and of what a GPU has free."""
    room = total_memory()
    if device.type == "cuda":
        room = min(room, torch.cuda.mem_get_info(device)[0])
    return int(DATA_SHARE * room)


@contextmanager
def watched() -> Iterator[None]:
    """Raises ``OutOfMemory``, with torch's error as its cause, where the memory runs out in the block."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError, ImportError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(told(error)) from error


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or _of_machine(error) or _says(error, OF_GPU)


def _of_machine(error: BaseException) -> bool:
    return lacks_memory(error) or _says(error, BEYOND_COUNTING)


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def told(error: BaseException) -> str:
    """What ran out, how much was asked for where torch says it, and how much of it there is."""
    if _of_machine(error):
        return told_lack(error, "machine", available_memory())
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else available_memory()
    return told_lack(error, "GPU", free)


def let_go(error: BaseException) -> None:
    """Drop what the frames of a failed attempt still hold."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__context__


def release() -> None:
    """Give the memory of all that is used no more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return_freed_memory()
