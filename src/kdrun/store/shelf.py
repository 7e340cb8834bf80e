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
class Shelf:
    """A folder with a folder for each key. Nothing in it is ever needed: ``kdrun clean --cache`` takes all of it."""

    folder: Path

    def find(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays of a key, read-only; None where there are none, or where their bytes were changed."""
        place = self.folder / key
        if not (place / "manifest.json").is_file():
            return None
        try:
            files: dict[str, Any] = read_json(place / "manifest.json")["files"]
            if any(digest_of_file(place / name) != known for name, known in files.items()):
                return None
            return {name.removesuffix(".npy"): np.load(place / name, mmap_mode="r") for name in files}
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

    def _place(self, begun: Path, place: Path) -> None:
        """Take the place of what was damaged; what another process finished meanwhile is as good."""
        if place.exists() and self.find(place.name) is None:
            shutil.rmtree(place)
        if not place.exists():
            os.replace(begun, place)
            sync_folder(self.folder)
