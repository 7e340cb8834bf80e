"""The machine under the process: its memory, how what is freed is kept, and other work that is seen on it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from pathlib import Path

MMAP_MAX, TRIM_THRESHOLD, TOP_PAD = -4, -1, -2
"""What ``mallopt`` of the GNU C library calls its parameters."""
PR_SET_PDEATHSIG = 1
"""What ``prctl`` of Linux calls the signal at the parent's end."""
GROWTH = 64 << 20
"""Bytes by which the heap grows."""
CONTAINER = Path("/sys/fs/cgroup")
"""Where Linux tells a container its limits."""
NO_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "failed to map segment",
    "can't start new thread",
)
"""What torch's allocator for CPUs, the system, C++, its loader of libraries and Python's threads say without any."""
UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
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


def end_with_parent() -> None:
    """Have this process killed as soon as the one that started it is gone, however it went; for Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid != os.getppid():  # it was gone before the system was asked
            os.kill(os.getpid(), signal.SIGKILL)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that the machine had no memory left."""
    said = isinstance(error, (RuntimeError, OSError, ImportError)) and str(error).lower()
    return isinstance(error, MemoryError) or bool(said and any(words in said for words in NO_MEMORY))


def raise_lack(error: Exception) -> None:
    """Raise an error on that says so: what was read or built is not to blame for it."""
    if lacks_memory(error):
        raise error


def told_lack(error: BaseException, where: str, free: int) -> str:
    """What ran out, how much was asked for where the error says it, and how much of it there is."""
    what = f"the memory of the {where} ran out"
    asked = re.search(r"(?:tried|unable) to allocate ([\d.]+) (\w+)", str(error), re.IGNORECASE)
    if asked is not None and asked[2] in UNITS:
        what += f" where {told_size(float(asked[1]) * UNITS[asked[2]])} more were asked for"
    return f"{what} ({told_size(free)} are free)"


def available_memory() -> int:
    """Bytes that this process can still have of the machine, or the container on it; all of it where nobody says."""
    try:
        with open("/proc/meminfo") as file:
            kilobytes = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return total_memory()
    free, limit = min(kilobytes << 10, _left_to_process()), _limit_of_container()
    return max(free if limit is None else min(free, limit - _used_in_container()), 0)


def _left_to_process() -> int:
    """Bytes of addresses that a limit (``ulimit -v``) leaves to this process."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return sys.maxsize
    return limit - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def total_memory() -> int:
    """Bytes that the machine, or the container on it, has."""
    try:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # Windows does not say
        whole = 8 << 30
    limit = _limit_of_container()
    return whole if limit is None else min(whole, limit)


def _limit_of_container() -> int | None:
    """What a control group allows, as its members see it; None where there is no limit."""
    try:
        text = (CONTAINER / "memory.max").read_text().strip()
    except OSError:
        return None
    return None if text == "max" else int(text)


def _used_in_container() -> int:
    """What it uses of that; file contents that can be dropped do not count."""
    stat = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
    return int((CONTAINER / "memory.current").read_text()) - int(stat.get("inactive_file", 0))


def told_size(count: float) -> str:
    """Bytes in words: ``31 GB``, ``1.5 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.{int(count < 10 * size)}f} {unit}"
    return f"{count:.0f} B"


class Neighbours:
    """What other processes work while this one and those that it started do something else."""

    def __init__(self) -> None:
        self._began, self._own, self._all = time.monotonic(), _own_work(), _worked()

    @property
    def busy_cores(self) -> float:
        """How many cores they kept busy since this was made; 0 where nobody can say."""
        took, own = time.monotonic() - self._began, _own_work() - self._own
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
            user, nice, system, _, _, irq, soft, steal, *_ = map(int, file.readline().split()[1:])
    except OSError:
        return 0.0
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def _own_work() -> float:
    """Seconds that this process and its children have worked, those that ended and those that run."""
    ended = os.times()
    return time.process_time() + ended.children_user + ended.children_system + _work_of_children()


def _work_of_children() -> float:
    """Seconds of the children that run, as Linux tells; elsewhere 0. They start none of their own here."""
    total = 0.0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = entry.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(words[1]) == os.getpid():
            total += (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    return total
