"""The user's own samples: a folder of pictures, or arrays in a .npz or .csv file."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator, Discriminator, Field, PositiveInt, Tag

from kdrun.contracts import Spec
from kdrun.data.augmentation import Augmentation, PictureConfig
from kdrun.data.base import STRONG, TEST_SHARE, VIEW, Raw, SampleSet
from kdrun.data.files import (
    PictureFiles,
    archive,
    as_inputs,
    closed,
    contents,
    decoded,
    files_in,
    numbers,
    rows_of_csv,
    some,
    visible,
)
from kdrun.data.sources import Inputs
from kdrun.data.views import ViewName
from kdrun.errors import DataError, did_you_mean, shown
from kdrun.schema import Sides, form, sides

LABELS = "y"
"""The array of a .npz file that holds them."""
COLUMNS = 1000
"""Columns among which a name is looked for that is nearly right."""


# --------------------------------------------------------------------------------- a folder of pictures


class ImageFolder(SampleSet):
    """Pictures in a folder for each class; any size and mode, resized to one size and converted to RGB.

    `root` holds `train` and `test` (or `val`, where there is no `test`), each with a folder for each class; or
    the classes' folders themselves, of which a test split is then drawn. Files may lie deeper inside a class's
    folder; hidden ones are ignored. Normalised by the figures of ImageNet, which weights trained on it expect.
    """

    class Config(PictureConfig):
        """Options of `image-folder`."""

        kind: Literal["image-folder"]
        root: Path = Field(strict=False)
        """the folder: `train` and `test` (or `val`) with a folder for each class, or those folders themselves"""
        size: Sides = 64
        """what pictures are resized to, in pixels: one number for squares, or [height, width]"""
        test: float | None = Field(default=None, gt=0, lt=1)
        """share drawn as the test split, stratified; 0.3 where nothing is said, and only for a folder without one"""
        augmentation: Augmentation = "flip"
        """as for every set of pictures; say `none` where left and right matter (text, digits, road signs)"""

    config: Config
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        train, test = self._folders()
        classes = _class_folders(train)
        if test is not None:
            _demand_equal(classes, _class_folders(test), test)
        self._size = sides(config.size)
        self._describe(Spec({VIEW: (3, *self._size)}, len(classes)))
        self.classes = [os.fsencode(name).decode(errors="replace") for name in classes]
        self._train, self._train_labels = _list(train, classes)
        self._test, self._test_labels = _list(test, classes) if test else ([], [])
        self.samples = len(self._train)
        self.test_share = 0.0 if test else config.test or TEST_SHARE

    def _folders(self) -> tuple[Path, Path | None]:
        """Where the classes' folders lie, and where those of the test split do."""
        if not self.root.is_dir():
            raise DataError(f"dataset.root: there is no folder {self.root}; write the folder of the pictures")
        test = next((self.root / name for name in ("test", "val") if (self.root / name).is_dir()), None)
        if test is None or not (self.root / "train").is_dir():
            return self.root, None
        if self.config.test is not None:
            raise DataError(
                f"dataset.test: {self.root} has a test split of its own, {test.name}; leave `test` out"
            )
        return self.root / "train", test

    def identity(self) -> dict[str, Any]:
        """The config, and a hash of the pictures."""
        return super().identity() | {"files": self._contents}

    @functools.cached_property
    def _contents(self) -> str:
        return contents(sorted(self._train + self._test), self.root)

    def read(self) -> Raw:
        """All pictures decoded where there is room for them, and otherwise checked, to be decoded while they are used.

        In memory if they fit, else in a memory map on the shelf.
        """
        everything = PictureFiles(self._train + self._test, self._size)
        count = len(self._train)
        pictures = decoded(everything, self.root, self.device, self._shelf, self._say)
        train: Inputs
        test: Inputs
        if pictures is None:
            train, test = PictureFiles(self._train, self._size), PictureFiles(self._test, self._size)
        else:
            pictures = pictures.transpose(0, 3, 1, 2)
            train, test = pictures[:count], pictures[count:]
        own = (test, np.array(self._test_labels)) if self._test else ()
        return Raw(train, np.array(self._train_labels), *own)


def _class_folders(folder: Path) -> list[str]:
    """The sorted names of the folders in a folder; raises ``DataError`` where they are fewer than two."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and visible(entry.name))
    except OSError as error:
        raise closed(error, "root") from error
    if len(names) < 2:
        raise DataError(
            f"dataset.root: {folder} has {len(names)} class folders ({', '.join(names) or 'none'}), and at least "
            "two are needed; it must hold a folder for each class, or `train` and `test` folders that do"
        )
    return names


def _demand_equal(train: list[str], test: list[str], folder: Path) -> None:
    missing, extra = sorted(set(train) - set(test)), sorted(set(test) - set(train))
    if missing or extra:
        told = [f"lacks {some(missing)}"] * bool(missing) + [f"adds {some(extra)}"] * bool(extra)
        raise DataError(
            f"dataset.root: {folder} has other classes than the training folder: it {' and '.join(told)}; "
            "both need the same class folders"
        )


def _list(folder: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    """The files of all classes in a fixed order, and their labels; raises ``DataError`` for an empty class."""
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(files_in(folder / name, "root"))
        if not found:
            raise DataError(
                f"dataset.root: {folder / name} holds no pictures; put some there or delete the folder"
            )
        paths += found
        labels += [label] * len(found)
    return paths, labels


# ----------------------------------------------------------------------------------------------- arrays


Shape = Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]
Shapes = Annotated[
    Annotated[Shape, Tag("many")] | Annotated[dict[str, Shape], Tag("one")], Discriminator(form)
]


def _each_another(names: list[str]) -> list[str]:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"'{name}' is there twice; write it once")
        if name in (LABELS, STRONG):
            what = "the labels are" if name == LABELS else "a `strong_view` is"
            raise ValueError(f"'{name}' is what {what} called; give the array another name")
    return names


class Arrays(SampleSet):
    """Samples in a .npz file (`x` and `y`, or `x_train`, `y_train`, `x_test`, `y_test`) or a .csv file.

    `x` (N, F) is a table; (N, H, W), (N, C, H, W) or (N, H, W, C) are pictures: uint8, other whole numbers from 0
    to 255, or floats from 0 to 1. `y` (N,) are whole numbers or strings; the classes are the sorted values. A .csv
    file has a header, a column of labels, and numbers in all others. Nothing is unpickled.

    A .npz file may hold several arrays of the same samples, each a table or pictures: with `inputs: [photo, sensor]`
    they stand in the place of `x` (`photo`, or `photo_train` and `photo_test`, …), and a model says which it sees, as
    `view: sensor`. Pictures of all of them are augmented alike.
    """

    class Config(PictureConfig):
        """Options of `arrays`."""

        kind: Literal["arrays"]
        path: Path = Field(strict=False)
        """the .npz or .csv file; a relative path is looked for in the folder where kdrun is run"""
        label: str = "label"
        """the column of the labels in a .csv file"""
        inputs: Annotated[list[ViewName], Field(min_length=1), AfterValidator(_each_another)] | None = None
        """of a .npz file with several arrays of the same samples: their names, that of the default view first"""
        shape: Shapes | None = None
        """[channels, height, width]: rows are pictures written flat, or which axis of `x` is which; where there are
        `inputs` by name, `{photo: [3, 32, 32]}`"""
        test: float | None = Field(default=None, gt=0, lt=1)
        """share drawn as the test split, stratified; 0.3 where nothing is said, and only for a file without one"""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._path = Path(os.path.expanduser(config.path))
        if not self._path.is_file():
            raise DataError(
                f"dataset.path: there is no file {self._path}; write the path of a .npz or .csv file"
            )
        readers = {".npz": _read_npz, ".csv": _read_csv}
        if self._path.suffix.lower() not in readers:
            raise DataError(
                f"dataset.path: {self._path} is neither a .npz nor a .csv file; write one of these"
            )
        parts, columns = readers[self._path.suffix.lower()](self._path, config)
        if len(parts) == 2 and config.test is not None:
            raise DataError(f"dataset.test: {self._path} has a test part of its own; leave `test` out")
        written = _shapes(config, parts[0].inputs.keys())
        inputs = {
            view: _inputs([part.inputs[name] for part in parts], name, self._path, written.get(name))
            for view, name in zip(config.inputs or [VIEW], parts[0].inputs, strict=True)
        }
        classes, labels = _labels([part.labels for part in parts], self._path)
        shapes = {view: tuple(train.shape[1:]) for view, (train, *_) in inputs.items()}
        self._describe(Spec(shapes, len(classes)), columns)
        self.classes = classes
        by_part = [dict(zip(inputs, of_part, strict=True)) for of_part in zip(*inputs.values(), strict=True)]
        self._raw = Raw(by_part[0], labels[0], *((by_part[1], labels[1]) if len(parts) == 2 else ()))
        self.samples = len(labels[0])
        self.test_share = 0.0 if len(parts) == 2 else config.test or TEST_SHARE

    def identity(self) -> dict[str, Any]:
        """The config without the path, and the file's hash."""
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        identity = super().identity() | {"sha256": digest}
        left_out = {"path"} if self.config.inputs else {"path", "inputs"}
        return {key: value for key, value in identity.items() if key not in left_out}

    def read(self) -> Raw:
        """What was read when the set was made."""
        return self._raw


def _shapes(config: Arrays.Config, names: Collection[str]) -> dict[str, list[int]]:
    """The shapes that are written of pictures, by the array's name."""
    if isinstance(config.shape, list):
        if config.inputs:
            raise DataError(
                f"dataset.shape: which input is of it? write `{{{config.inputs[0]}: {config.shape}}}`"
            )
        return {"x": config.shape}
    for name in config.shape or {}:
        if name not in names:
            raise DataError(f"dataset.shape: there is no input '{shown(name)}'; {did_you_mean(name, names)}")
    return config.shape or {}


class Read(NamedTuple):
    """A part of a file: arrays (N, …) by name, and the labels (N,)."""

    inputs: dict[str, np.ndarray]
    labels: np.ndarray


def _read_npz(path: Path, config: Any) -> tuple[list[Read], list[str]]:
    """The training part, and the test part if there is one, and no names of columns."""
    arrays = archive(path)
    names = [*(config.inputs or ["x"]), LABELS]
    for endings in ([""], ["_train", "_test"]):
        if all(name + ending in arrays for name in names for ending in endings):
            return [_part(arrays, names, ending, path) for ending in endings], []
    key = "dataset.inputs: " if config.inputs else ""
    there = {name.removesuffix("_train").removesuffix("_test") for name in arrays}
    near = [
        f"; for '{name}', {found}"
        for name in names
        if name not in there and (found := did_you_mean(name, there, list_all=False))
    ]
    pairs = [f"{name}_{part}" for part in ("train", "test") for name in names]
    raise DataError(
        f"{key}{path}: holds {some(arrays) or 'nothing'}; it must hold {', '.join(names[:-1])} and {LABELS}, or "
        f"{', '.join(pairs)}{''.join(near)}"
    )


def _part(arrays: Mapping[str, np.ndarray], names: Sequence[str], ending: str, path: Path) -> Read:
    """What has names that end so; the last are the labels'."""
    *inputs, labels = (arrays[name + ending] for name in names)
    for name, x in zip(names, inputs, strict=False):
        _demand_rows(x, labels, name + ending, path)
    return Read(dict(zip(names, inputs, strict=False)), labels)


def _demand_rows(x: np.ndarray, y: np.ndarray, name: str, path: Path) -> None:
    if x.ndim < 2 or x.size == 0 or y.shape not in ((len(x),), (len(x), 1)):
        raise DataError(
            f"{path}: {name} is {x.shape} and its labels are {y.shape}; write (N, …) samples and (N,) labels"
        )


def _read_csv(path: Path, config: Any) -> tuple[list[Read], list[str]]:
    """All rows as one part, and the names of the columns without the labels'."""
    if config.inputs:
        raise DataError(
            "dataset.inputs: a .csv file holds one table; leave it out, or write `views` of some columns"
        )
    lines, label = rows_of_csv(path), config.label
    where, header = next(lines)
    if label not in header:
        known = did_you_mean(label, map(shown, header[:COLUMNS]), list_all=len(header) <= 20)
        raise DataError(
            f"{where}: there is no column '{label}' for the labels; write `label: COLUMN`; {known}"
        )
    at = header.index(label)
    columns = header[:at] + header[at + 1 :]
    rows, labels = [], []
    for where, cells in lines:
        label_cell = cells.pop(at).strip()
        if not label_cell:
            raise DataError(f"{where}: the label is missing; fill it in or delete the line")
        labels.append(label_cell)
        rows.append(numbers(cells, columns, where))
    if not rows or not columns:
        raise DataError(f"{path}: holds no samples; it needs a header and rows of numbers and a label")
    return [Read({"x": np.stack(rows)}, np.array(labels))], columns


def _inputs(parts: Sequence[np.ndarray], name: str, path: Path, shape: list[int] | None) -> list[np.ndarray]:
    """An input of each part of a file: tables (N, F) float64, or pictures (N, C, H, W), uint8 or float32 in [0, 1]."""
    found = [as_inputs(x, name, path, shape) for x in parts]
    train, test = found[0], found[-1]
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise DataError(
            f"{path}: {name}_train {train.shape} {train.dtype} and {name}_test {test.shape} {test.dtype} are of "
            "different kinds; save both alike"
        )
    return found


def _labels(given: list[np.ndarray], path: Path) -> tuple[list[str], list[np.ndarray]]:
    """The classes' names, sorted, and the labels of each part as positions in them.

    Whole numbers that stand as text are sorted as numbers. Raises ``DataError`` where labels are no classes, or
    the test part has some that the training part lacks.
    """
    flat = [labels.ravel() for labels in given]
    if any(labels.dtype.kind not in "biuU" for labels in flat):
        raise DataError(
            f"{path}: the labels are {flat[0].dtype}; save whole numbers or strings, one for each class"
        )
    if any(labels.dtype.kind == "U" for labels in flat):
        flat = [labels.astype(str) for labels in flat]
        with contextlib.suppress(ValueError):
            flat = [labels.astype(np.int64) for labels in flat]
    values = np.unique(flat[0])
    if len(values) < 2:
        raise DataError(f"{path}: all labels are {shown(values[0])}; at least two classes are needed")
    unseen = np.setdiff1d(flat[-1], values)
    if len(unseen):
        raise DataError(
            f"{path}: the test part has the classes {some(unseen)} which no training "
            "sample has; leave them out, or bring samples of them"
        )
    return [str(value) for value in values], [np.searchsorted(values, labels) for labels in flat]
