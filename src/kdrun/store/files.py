"""Files that are whole or absent, and JSON that says when it is not what was written."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import signal
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from kdrun.errors import DamagedError, StoreError
from kdrun.machine import told_size
from kdrun.store.forms import demand_form

FORMAT = 2
"""Of all that is written here, raised when an older kdrun could not read it. What is of format 1 has no seal."""
SEAL = ',\n "sha256": "'
"""What begins the last entry of a JSON file: the hash of all bytes before it."""
ANEW = "the command that made it makes it anew"
"""What is said of everything that is damaged."""
TRIES = 4
"""How often a file is begun of which others take the beginnings away."""
TEMPORARY = "tmp"
"""How files end that are not finished."""
KILL_AT = "KDRUN_KILL_AT"
"""For tests, in the environment: ``FILE/STAGE`` (or a pattern of that), or ``FILE/STAGE:N``, where at the first, or the
Nth, time the process kills itself while it writes."""
INSTEAD = {
    errno.ENOSPC: "make room, or choose another place",
    errno.EDQUOT: "make room, or choose another place",
    errno.EFBIG: "allow larger files (ulimit -f), or choose another place",
    errno.EACCES: "allow it, or choose another place",
    errno.EPERM: "allow it, or choose another place",
    errno.EROFS: "allow it, or choose another place",
}
"""What to do where the system refuses to write."""
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK)
"""What file systems say that know no second name of a file."""
STAGES = ("opened", "half", "written", "synced", "replaced", "done")
"""What a file goes through until it counts."""

_times = 0


def reached(point: str) -> None:
    """A point of the save path; where ``KILL_AT`` names it, the process ends there as by a power cut."""
    wanted, _, number = os.environ.get(KILL_AT, "").partition(":")
    if wanted and fnmatch(point, wanted):
        global _times
        _times += 1
        if _times == int(number or 1):
            os.kill(os.getpid(), signal.SIGKILL)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that after a crash it is the old one or the new one, never a part.

    Raises ``StoreError`` where the disk or the permissions do not allow it.
    """
    _write(path, data, take=os.replace)


def _write(path: Path, data: bytes, take: Callable[[Path, Path], object]) -> None:
    """Write a file beside its place, and then ``take`` the place.

    A process that cleans up may take the folder away while it is empty, or the file: then it is written again.
    """
    for left in reversed(range(TRIES)):
        try:
            _try_to_write(path, data, take)
            return
        except OSError as error:
            if not left or not isinstance(error, FileNotFoundError):
                raise StoreError(refusal(path, len(data), error)) from error


def _try_to_write(path: Path, data: bytes, take: Callable[[Path, Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{TEMPORARY}")
    stages = (f"{path.name}/{stage}" for stage in STAGES)
    try:
        make_folder(path.parent)
        with open(temporary, "xb") as file:
            reached(next(stages))
            file.write(memoryview(data)[: len(data) // 2])
            file.flush()
            reached(next(stages))
            file.write(memoryview(data)[len(data) // 2 :])
            file.flush()
            reached(next(stages))
            os.fsync(file.fileno())
        reached(next(stages))
        take(temporary, path)
        reached(next(stages))
        sync_folder(path.parent)
        reached(next(stages))
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def refusal(path: Path, size: int, error: OSError) -> str:
    """What is said where a file of so many bytes cannot be written: what that needs, what there is, what to do."""
    why, free = error.strerror or str(error), "nobody knows what is"
    with suppress(OSError):
        places = [place for place in path.parents if place.exists()]
        free = f"{told_size(shutil.disk_usage(places[0]).free)} are"
        why = f"{places[0]} is a file" if places[0].is_file() else why
    instead = INSTEAD.get(error.errno or 0, "choose another place")
    return f"{path}: cannot be written: {why}; it needs {told_size(size)}, and {free} free there; {instead}"


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in, so that they survive a crash."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path, name: str = "*", age: float = 0.0) -> None:
    """Take away what writers of a file that were killed left in a folder, if it is older than so many seconds.

    Where others may be writing, ``age`` has to be more than that takes.
    """
    for path in folder.glob(f".{name}.*.{TEMPORARY}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime >= age:
                path.unlink()


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a mapping that ``read_json`` knows when it is damaged; not-a-number is refused, since it is no JSON."""
    write_bytes(path, sealed(value))


def claim_json(path: Path, value: dict[str, Any]) -> bool:
    """``write_json`` unless there is a file; whether this process made it. Of several, one can."""
    claimed = True

    def take(temporary: Path, path: Path) -> None:
        nonlocal claimed
        try:
            os.link(temporary, path)
        except FileExistsError:
            claimed = False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            try:
                open(path, "xb").close()
                os.replace(temporary, path)
            except FileExistsError:
                claimed = False

    _write(path, sealed(value), take)
    return claimed


def sealed(value: dict[str, Any]) -> bytes:
    """A mapping as JSON, with its format first and the hash of it all last."""
    text = json.dumps({"format": FORMAT, **value}, indent=1, allow_nan=False).removesuffix("\n}")
    return f'{text}{SEAL}{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'.encode()


def opened(path: Path) -> io.BufferedReader:
    """A file, to be read; raises ``OSError`` for what is none: into a pipe, for instance, nobody might ever write."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path) -> bytes:
    """What a file holds; raises ``OSError``."""
    with opened(path) as file:
        return file.read()


def holds(path: Path, data: bytes) -> bool:
    """Whether that is what a file holds."""
    with suppress(OSError):
        return read_bytes(path) == data
    return False


def read_json(path: Path) -> dict[str, Any]:
    """What ``write_json`` was given.

    Raises ``DamagedError`` where a byte of it is another, kdrun did not write it, or it is missing, and ``StoreError``
    where a newer kdrun wrote it.
    """
    try:
        data = read_bytes(path)
        text, seal, end = data.rpartition(SEAL.encode())
        value = json.loads(data)
        written_by = value.get("format", 1)
        if isinstance(written_by, int) and written_by > FORMAT:
            raise StoreError(
                f"{path}: format {written_by} is newer than this kdrun's {FORMAT}; update kdrun, or delete the file if "
                "no newer one wrote it"
            )
        whole = end.decode() == f'{hashlib.sha256(text).hexdigest()}"\n}}\n' if seal else written_by == 1
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path}: is damaged: {error}; {ANEW}") from error
    if not whole:
        raise changed(path)
    demand_form(path, value)
    return {key: entry for key, entry in value.items() if key not in ("format", "sha256")}


def read_whole(path: Path, known: dict[str, Any]) -> bytes:
    """A file's bytes; raises ``DamagedError`` where they are not those of its ``digest``."""
    try:
        with opened(path) as file:
            if os.fstat(file.fileno()).st_size != known["bytes"]:
                raise changed(path)
            data = file.read()
    except OSError as error:
        raise _unreadable(path, error) from error
    if digest(data) != known:
        raise changed(path)
    return data


def changed(path: Path) -> DamagedError:
    """What is raised for a file that is not as it was written."""
    return DamagedError(f"{path}: its bytes are not those that were written; {ANEW}")


def _unreadable(path: Path, error: OSError) -> DamagedError:
    return DamagedError(f"{path}: cannot be read: {error.strerror or error}; {ANEW}")


def digest(data: bytes) -> dict[str, Any]:
    """Size and SHA-256, as manifests carry them."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def digest_of_file(path: Path) -> dict[str, Any]:
    """``digest`` of a file that may be too large to read at once."""
    with opened(path) as file:
        return {
            "bytes": os.fstat(file.fileno()).st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def demand(folder: Path, files: dict[str, Any]) -> None:
    """Raises ``DamagedError`` with the first of a manifest's ``files`` that is missing or other than was written."""
    for name, known in files.items():
        try:
            same = (folder / name).stat().st_size == known["bytes"] and digest_of_file(folder / name) == known
        except OSError as error:
            raise _unreadable(folder / name, error) from error
        if not same:
            raise changed(folder / name)
