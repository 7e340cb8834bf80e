"""Arrays that could be computed anew, kept between commands: whole or absent, read through a memory map."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.errors import StoreError
from kdrun.store.files import digest_of_file, read_json, sync_folder, write_json

SPARE = 1.05
"""What must be free on the disk, as a multiple of what is to be written."""

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
        if not (place / "manifest.json").is_file():
            return None
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
        place, begun = self.folder / key, self.folder / f".{key}.{os.getpid()}"
        self._sweep()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(begun, ignore_errors=True)
            begun.mkdir()
            free = shutil.disk_usage(self.folder).free
            if free < SPARE * size(forms):
                raise StoreError(f"{place}: needs {size(forms):,} bytes, and {free:,} are free")
            arrays: dict[str, np.ndarray] = {
                name: np.lib.format.open_memmap(begun / f"{name}.npy", "w+", np.dtype(kind), shape)
                for name, (shape, kind) in forms.items()
            }
            yield arrays
            for array in arrays.values():
                assert isinstance(array, np.memmap)
                array.flush()
            files = {f"{name}.npy": digest_of_file(begun / f"{name}.npy") for name in forms}
            write_json(begun / "manifest.json", {**about, "files": files})
            self._place(begun, place)
        except OSError as error:
            raise StoreError(
                f"{place}: cannot be written ({size(forms):,} bytes): {error.strerror}"
            ) from error
        finally:
            shutil.rmtree(begun, ignore_errors=True)

    def _sweep(self) -> None:
        """Take away what processes that were killed left behind."""
        for path in self.folder.glob(".*"):
            if (process := maker(path)) is not None and not lives(process):
                shutil.rmtree(path, ignore_errors=True)

    def _place(self, begun: Path, place: Path) -> None:
        """Take the place of what was damaged; what another process finished meanwhile is as good."""
        if place.exists() and self.find(place.name) is None:
            shutil.rmtree(place)
        if not place.exists():
            os.replace(begun, place)
            sync_folder(self.folder)


def maker(path: Path) -> int | None:
    """The process that makes what will be an entry, by the name of its hidden folder; None for anything else."""
    hidden, _, process = path.name.rpartition(".")
    return int(process) if len(hidden) > 1 and hidden[0] == "." and process.isdecimal() else None


def lives(process: int) -> bool:
    """Whether there is such a process, anybody's."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
