"""One run, one writer: a lock that dies with its holder."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path

from kdrun.errors import StoreError
from kdrun.store.files import make_folder, opened, refusal

PATIENCE = 10
"""How often a lock is tried: those who only look whether somebody has it hold it themselves for a moment."""


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock at ``path``; raises ``StoreError`` with its holder where another process has it."""
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    holder = f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode()
    with ExitStack() as held:
        try:
            make_folder(path.parent)
            file = held.enter_context(_taken(path, what))
            file.truncate(0)
            file.write(holder)
        except OSError as error:
            raise StoreError(refusal(path, len(holder), error)) from error
        yield


def held(path: Path) -> bool:
    """Whether some process holds a lock; raises ``OSError`` where that cannot be seen."""
    try:
        with opened(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _no_link(path: str, flags: int) -> int:
    """Open a file, and no other in its place: what a link led to would be emptied."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _taken(path: Path, what: str) -> FileIO:
    """The lock's file, open and locked."""
    tries = 0
    while True:
        file = FileIO(path, "a+", opener=_no_link)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError:
            tries += 1
            if tries >= PATIENCE:
                file.seek(0)
                holder = file.read().decode(errors="replace").strip() or "another process"
                told = f"{what} is being trained by {holder}; wait for it, or use another --out"
                raise StoreError(told) from None
            time.sleep(0.01)
        file.close()  # or its last holder took it away
