"""Arrays that could be computed anew, kept between commands: whole or absent, read through a memory map."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.errors import StoreError
from kdrun.machine import raise_lack
from kdrun.store.files import digest_of_file, opened, read_json, refusal, sync_folder, write_json
from kdrun.store.lock import held

SPARE = 1.05
"""What must be free on the disk, as a multiple of what is to be written."""

MAKING, LOCK = ".making", "lock"
"""How the folder of what is not finished ends, and the file in it that its maker has locked."""
NEW = 60
"""Seconds in which a maker has locked its folder, or is gone."""

Form = tuple[tuple[int, ...], str]
"""Shape and type of an array, the type as NumPy writes it: ``"float32"``."""


def size(forms: Mapping[str, Form]) -> int:
    """The bytes that arrays take."""
    return sum(prod(shape) * np.dtype(kind).itemsize for shape, kind in forms.values())


@dataclass(frozen=True)
class Kept:
    """Arrays, read-only, and what was said of them when they were made."""

    arrays: dict[str, np.ndarray]
    about: dict[str, Any]

    @property
    def bytes(self) -> int:
        """The memory that they would take."""
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True)
class Shelf:
    """A folder with a folder for each key. Nothing in it is ever needed: ``kdrun clean --cache`` takes all of it."""

    folder: Path

    def find(self, key: str) -> Kept | None:
        """What is kept by a key; None where there is nothing, or where its bytes were changed."""
        place = self.folder / key
        try:
            about = read_json(place / "manifest.json")
            files: dict[str, Any] = about.pop("files")
            if any(digest_of_file(place / name) != known for name, known in files.items()):
                return None
            return Kept(
                {name.removesuffix(".npy"): np.load(place / name, mmap_mode="r") for name in files}, about
            )
        except (OSError, ValueError, KeyError, StoreError):
            return None

    @contextmanager
    def make(
        self, key: str, forms: Mapping[str, Form], about: Mapping[str, Any]
    ) -> Iterator[dict[str, np.ndarray]]:
        """Arrays to be filled; they are there for others once the block has ended without an error.

        ``about`` goes into the manifest, for people. Raises ``StoreError`` where the disk has no room for them.
        """
        place = self.folder / key
        try:
            with self._begun(key) as begun:
                free = shutil.disk_usage(self.folder).free
                if free < SPARE * size(forms):
                    raise StoreError(f"{place}: needs {size(forms):,} bytes, and {free:,} are free")
                arrays = {name: _room(begun / f"{name}.npy", form) for name, form in forms.items()}
                yield dict(arrays)
                for array in arrays.values():
                    array.flush()
                files = {f"{name}.npy": digest_of_file(begun / f"{name}.npy") for name in forms}
                write_json(begun / "manifest.json", {**about, "files": files})
                self._place(begun, place)
        except OSError as error:
            raise_lack(error)  # to map the arrays into it
            raise StoreError(refusal(place, size(forms), error)) from error

    @contextmanager
    def _begun(self, key: str) -> Iterator[Path]:
        """A folder of this process alone, locked while it is at work; what of it is not placed is taken away."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        while True:
            begun = self._new(key)
            try:
                with open(begun / LOCK, "w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    if (begun / LOCK).exists():  # or another process's sweep was faster
                        yield begun
                        return
            finally:
                shutil.rmtree(begun, ignore_errors=True)

    def _new(self, key: str) -> Path:
        """A folder that nobody has, with the permissions of any other: what is kept may be read by all who share it."""
        while True:
            place = self.folder / f".{key}.{secrets.token_hex(4)}{MAKING}"
            with suppress(FileExistsError):
                place.mkdir()
                return place

    def _sweep(self) -> None:
        """Take away what processes that were killed left behind; what has no lock yet is left to ``clean``."""
        for path in self.folder.glob(f".*{MAKING}"):
            with suppress(OSError), opened(path / LOCK) as lock:  # locked by its maker, or gone
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)

    def _place(self, begun: Path, place: Path) -> None:
        """Take the place of what was damaged; what another process finished meanwhile is as good."""
        (begun / LOCK).unlink()
        while True:
            try:
                os.replace(begun, place)
                return sync_folder(self.folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            if self.find(place.name) is not None:
                return None
            aside = self._new(place.name)
            with suppress(FileNotFoundError):  # another process took it away
                os.replace(place, aside)
            shutil.rmtree(aside, ignore_errors=True)


def _room(path: Path, form: Form) -> np.memmap[Any, Any]:
    """A file for an array, mapped into memory, for which the disk has given all of its room."""
    shape, kind = form
    array = np.lib.format.open_memmap(path, "w+", np.dtype(kind), shape)
    if hasattr(os, "posix_fallocate"):  # or a disk that fills up meanwhile kills the process
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def at_work(path: Path) -> bool | None:
    """Whether a process still makes what lies here; None for what is no entry in the making.

    One that has no lock yet counts as at work where it is new.
    """
    if not (path.name.startswith(".") and path.name.endswith(MAKING)):
        return None
    with suppress(OSError):
        if (path / LOCK).exists():
            return held(path / LOCK)
        return time.time() - path.stat().st_mtime < NEW
    return False
