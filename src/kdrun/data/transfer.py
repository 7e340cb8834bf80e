"""The transfer set: samples without labels, in the form of a data set's own, for its students alone."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kdrun.contracts import DatasetConfig, Shelf
from kdrun.data.files import (
    MODES,
    PictureFiles,
    archive,
    as_inputs,
    contents,
    decoded,
    files_in,
    numbers,
    of_shape,
    rows_of_csv,
    some,
)
from kdrun.data.inputs import told_apart
from kdrun.data.sources import Inputs
from kdrun.errors import DataError, shown

KEY = "transfer_set"


class Transfer(Protocol):
    """Samples without labels, of which no more was read than is needed to count them."""

    @property
    def identity(self) -> str:
        """SHA-256 of what its files hold."""
        ...

    def __len__(self) -> int: ...

    def read(
        self, columns: Sequence[str], device: torch.device, shelf: Shelf | None, say: Callable[[str], None]
    ) -> Inputs:
        """The samples, those of a table with these ``columns``; raises ``DataError`` where they cannot be read."""
        ...


def opened(config: DatasetConfig, shapes: Sequence[Sequence[int]]) -> Transfer | None:
    """The transfer set of a data set whose inputs are of some shapes; raises ``DataError`` where it does not fit."""
    given = config.transfer_set
    if given is None:
        return None
    if len(shapes) > 1:
        raise DataError(
            f"dataset.{KEY}: the data set has {len(shapes)} inputs, and a transfer set has one; remove it"
        )
    [shape] = shapes
    if given.root is not None:
        return Folder(Path(os.path.expanduser(given.root)), shape)
    assert given.path is not None
    with _blamed("path"):
        [array] = getattr(config, "inputs", None) or ["x"]
        return File(Path(os.path.expanduser(given.path)), shape, array, getattr(config, "label", "label"))


@contextmanager
def _blamed(key: str) -> Iterator[None]:
    """Have a ``DataError`` name the key that led to the file."""
    try:
        yield
    except DataError as error:
        raise DataError(f"dataset.{KEY}.{key}: {str(error).removeprefix('dataset: ')}") from error


class Folder:
    """Pictures in a folder, whatever the folders in it are called."""

    def __init__(self, root: Path, shape: Sequence[int]) -> None:
        self._root = root
        with _blamed("root"):
            if len(shape) != 3 or shape[0] not in MODES:
                raise DataError(
                    f"pictures of files are no samples of shape {list(shape)}; write `path`, a .npz or .csv file"
                )
            if not root.is_dir():
                raise DataError(f"there is no folder {root}; write the folder of the pictures")
        self._pictures = PictureFiles(
            sorted(files_in(root, f"{KEY}.root")), (shape[1], shape[2]), channels=shape[0]
        )
        if not len(self):
            raise DataError(f"dataset.{KEY}.root: {root} holds no pictures; put some there")

    def __len__(self) -> int:
        return len(self._pictures)

    @functools.cached_property
    def identity(self) -> str:
        """SHA-256 of the pictures' places, and of what they hold."""
        return contents(self._pictures.paths, self._root)

    def read(
        self, columns: Sequence[str], device: torch.device, shelf: Shelf | None, say: Callable[[str], None]
    ) -> Inputs:
        """The pictures decoded, where there is room for them, and otherwise to be decoded while they are used."""
        with _blamed("root"):
            found = decoded(self._pictures, self._root, device, shelf, say)
        return self._pictures if found is None else found.transpose(0, 3, 1, 2)


class File:
    """An array of a .npz file, or the columns of a .csv file but for the labels."""

    def __init__(self, path: Path, shape: Sequence[int], array: str, label: str) -> None:
        self._path, self._columns = path, list[str]()
        if not path.is_file():
            raise DataError(f"there is no file {path}; write the path of a .npz or .csv file")
        if path.suffix.lower() == ".npz":
            arrays = archive(path)
            if array not in arrays:
                raise DataError(f"{path}: holds {some(arrays) or 'nothing'}; it must hold {array}")
            x = arrays[array]
        elif path.suffix.lower() == ".csv":
            self._columns, x = _table(path, label)
        else:
            raise DataError(f"{path} is neither a .npz nor a .csv file; write one of these")
        self._samples = _of_form(x, array, path, shape)

    def __len__(self) -> int:
        return len(self._samples)

    @functools.cached_property
    def identity(self) -> str:
        """SHA-256 of the file."""
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read(
        self, columns: Sequence[str], device: torch.device, shelf: Shelf | None, say: Callable[[str], None]
    ) -> Inputs:
        """The samples, a table's columns in the order of the set's; raises ``DataError`` where these are others."""
        own, wanted = told_apart(self._columns), told_apart(columns)
        if not columns or not own or own == wanted:
            return self._samples
        if sorted(own) != sorted(wanted):
            told = [
                f"{word} {some(names)}"
                for word, names in (
                    ("lacks", sorted(set(wanted) - set(own))),
                    ("adds", sorted(set(own) - set(wanted))),
                )
                if names
            ]
            raise DataError(
                f"dataset.{KEY}.path: {self._path} has other columns than the data set: it {' and '.join(told)}"
            )
        return self._samples[:, [own.index(name) for name in wanted]]


def _table(path: Path, label: str) -> tuple[list[str], np.ndarray]:
    """The columns of a .csv file without that of the labels, and its rows (N, F)."""
    lines = rows_of_csv(path)
    _, header = next(lines)
    kept = [place for place, name in enumerate(header) if name != label]
    columns = [header[place] for place in kept]
    rows = [numbers([cells[place] for place in kept], columns, where) for where, cells in lines]
    return columns, np.array(rows).reshape(len(rows), len(columns))


def _of_form(x: np.ndarray, name: str, path: Path, shape: Sequence[int]) -> np.ndarray:
    """Samples as a data set keeps those of a ``shape``: rows float64, pictures uint8 or float32 in [0, 1]."""
    if x.ndim < 2 or not x.size:
        raise DataError(f"{path}: holds no samples; x is {x.shape}")
    fitting = (x if x.shape[1:] == tuple(shape) else None) if len(shape) == 1 else of_shape(x, shape)
    if fitting is None:
        raise DataError(
            f"{path}: its samples are of shape {shown(list(x.shape[1:]))}, and those of the data set of {list(shape)}; "
            "bring both into one form"
        )
    return as_inputs(fitting, name, path, None if len(shape) == 1 else list(shape))


def places_among(samples: Iterable[Tensor], others: Iterable[Tensor]) -> np.ndarray:
    """Which of others each of the samples (N,), some at a time, equals to the bit; -1 where it equals none."""
    known = {told: place for place, told in enumerate(_hashes(others))}
    return np.array([known.get(told, -1) for told in _hashes(samples)])


def _hashes(samples: Iterable[Tensor]) -> Iterator[bytes]:
    for several in samples:
        exact = several.double() if several.ndim == 2 else several
        yield from (hashlib.blake2b(one.tobytes(), digest_size=16).digest() for one in exact.numpy())
