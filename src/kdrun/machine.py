"""The machine under the process: its memory, how what is freed is kept, and other work that is seen on it."""

from __future__ import annotations

import ctypes
import os
import sys
import time

MMAP_MAX, TRIM_THRESHOLD, TOP_PAD = -4, -1, -2
"""What ``mallopt`` of the GNU C library calls its parameters."""
GROWTH = 64 << 20
"""Bytes by which the heap grows."""
BUSY = 0.25
"""Cores of other processes from which on it is worth a word."""


def keep_freed_memory() -> None:
    """Have the allocator keep what is freed, or every step pays for its pages anew; for Linux and before torch.

    Nothing happens where the C library is another one.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, GROWTH)):
            mallopt(parameter, value)


def return_freed_memory() -> None:
    """Give the system back what the allocator keeps, so that it counts as available; nothing without glibc."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def available_memory() -> int:
    """Bytes that the machine can still give out, as Linux estimates them; all that it has where nobody says."""
    try:
        with open("/proc/meminfo") as file:
            kilobytes = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
        return kilobytes << 10
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def told_size(count: float) -> str:
    """Bytes in words: ``31 GB``, ``1.5 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.{int(count < 10 * size)}f} {unit}"
    return f"{count:.0f} B"


class Neighbours:
    """What other processes work while this one does something else."""

    def __init__(self) -> None:
        self._began, self._own, self._all = time.monotonic(), time.process_time(), _worked()

    @property
    def busy_cores(self) -> float:
        """How many cores they kept busy since this was made; 0 where nobody can say."""
        took, own = time.monotonic() - self._began, time.process_time() - self._own
        return max(_worked() - self._all - own, 0.0) / max(took, 1e-3)


def crowded(busy_cores: float, threads: int) -> str | None:
    """What to say where others keep so many cores busy: threads of one step wait for each other on any of theirs."""
    cores = os.cpu_count() or 1
    if threads == 1 or busy_cores <= cores - threads + BUSY:
        return None
    return (
        f"other processes keep {busy_cores:.1f} of {cores} cores busy: {threads} threads beside them can be slower "
        "than one; try OMP_NUM_THREADS=1"
    )


def _worked() -> float:
    """Seconds that all cores have worked since the machine was started, as Linux tells; elsewhere 0."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, *_ = (int(word) for word in file.readline().split()[1:])
    except OSError:
        return 0.0
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")
