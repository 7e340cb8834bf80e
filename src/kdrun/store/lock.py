"""One run, one writer: a lock that dies with its holder."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kdrun.errors import StoreError
from kdrun.store.files import make_folder, refusal


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock at ``path``; raises ``StoreError`` with its holder where another process has it."""
    file = _taken(path, what)
    with file:
        file.truncate(0)
        file.write(
            f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        )
        file.flush()
        yield


def _no_link(path: str, flags: int) -> int:
    """Open a file, and no other in its place: what a link led to would be emptied."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _taken(path: Path, what: str) -> IO[str]:
    """The lock's file, open and locked."""
    try:
        make_folder(path.parent)
        while True:
            file = open(path, "a+", opener=_no_link)  # noqa: SIM115 (its holder closes it)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
            file.close()  # its last holder took it away
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise StoreError(f"{what} is being trained by {holder}; wait for it, or use another --out") from None
    except OSError as error:
        raise StoreError(refusal(path, 0, error)) from error
