"""Files that are whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdrun.errors import StoreError


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that after a crash it is the old one or the new one, never a part.

    Raises ``StoreError`` where the disk or the permissions do not allow it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StoreError(f"{path}: cannot be written ({len(data):,} bytes): {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """``write_bytes`` of JSON; not-a-number is refused, since it is no JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def claim_json(path: Path, value: Any) -> bool:
    """Write a file of JSON unless there is one; whether this process made it. Of several, one can."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.claim")
    write_json(temporary, value)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink()
    return True


def read_json(path: Path) -> Any:
    """The JSON in a file; raises ``StoreError`` where it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(f"{path}: is damaged: {error}; delete it to have it made again") from error


def digest(data: bytes) -> dict[str, Any]:
    """Size and SHA-256, as manifests carry them."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def digest_of_file(path: Path) -> dict[str, Any]:
    """``digest`` of a file that may be too large to read at once."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
