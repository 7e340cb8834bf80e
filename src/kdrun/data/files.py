"""The user's own samples: a folder of pictures, or arrays in a .npz or .csv file."""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import math
import os
import threading
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TextIO

import numpy as np
from PIL import Image
from pydantic import AfterValidator, Discriminator, Field, PositiveInt, Tag

from kdrun.contracts import Spec
from kdrun.data.augmentation import Augmentation, PictureConfig
from kdrun.data.base import STRONG, TEST_SHARE, VIEW, Raw, SampleSet
from kdrun.data.sources import Inputs
from kdrun.data.views import Sides, ViewName, sides
from kdrun.errors import DataError, StoreError, did_you_mean, printable, shown
from kdrun.machine import available_memory, raise_lack, return_freed_memory, told_size
from kdrun.memory import room_for_data
from kdrun.schema import form

WORTH_KEEPING = 64_000_000
"""Bytes of decoded pictures that take seconds to decode; fewer are decoded anew by every command."""
READ_WHOLE = 256_000_000
"""Bytes of pictures that take half a second to hash."""
LOOKED_INTO, BEGINNING = 1000, 1 << 16
"""Of more, how many files are looked into, and how far."""
DECODED_AS = 1
"""Raised whenever pictures are decoded otherwise, so that those on the shelf are not taken for them."""
AT_ONCE = 64
"""Files that a thread takes on in one go; handing over small pictures one by one costs as much as decoding them."""
LISTED = 10
"""How many broken files an error names before it only counts them."""
LINE = 10_000_000
"""Characters of the longest line of a .csv file; a million columns have fewer."""
COLUMNS = 1000
"""Columns among which a name is looked for that is nearly right."""
LARGE = 20_000_000
"""Pixels from which on pictures are decoded one at a time: a file of a few kB may hold nearly ten times as many."""
_one_large = threading.Lock()
IGNORED = {"thumbs.db", "desktop.ini", "__macosx"}
"""What file managers leave in folders, apart from hidden files."""
LABELS = "y"
"""The array of a .npz file that holds them."""
CHANNELS = {1, 3, 4}
"""Sizes by which the axis of the channels is known."""
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""What pictures may be, as Pillow calls it: all that it decodes by itself. PostScript, for one, is a program."""


# --------------------------------------------------------------------------------- a folder of pictures


def decode(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A picture file as RGB, uint8 (3, *size), resized to ``size`` (height, width) without keeping its ratio.

    Bilinear, with antialiasing where it shrinks; of 16 bits of grey the upper 8 are kept; an animation's first
    picture is taken. Raises whatever Pillow raises for a broken file.
    """
    if not path.is_file():  # or a pipe would be waited for
        raise ValueError("is not there, or no regular file")
    with Image.open(path, formats=_formats()) as image:
        if image.width * image.height <= LARGE:
            return _resized(image, size)
        with _one_large:
            pixels = _resized(image, size)
            image.close()
            return_freed_memory()
        return pixels


def _resized(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """An open picture as ``decode`` gives it."""
    if image.mode == "F":
        raise ValueError("pictures of floating-point numbers have no known range")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image.resize(size[::-1], Image.Resampling.BILINEAR)).transpose(2, 0, 1)


@functools.cache
def _formats() -> list[str]:
    """Those of the ``FORMATS`` that this Pillow knows."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def each(paths: Sequence[Path], work: Callable[[int], object]) -> None:
    """Do ``work`` for the position of every path, in threads.

    Raises one ``DataError`` that names all the files (the first ten, and their number) whose work failed.
    """

    def attempt(position: int) -> str | None:
        try:
            work(position)
        except Exception as error:  # Pillow raises many kinds for broken files
            raise_lack(error)
            reason = (
                "no picture that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else error
            )
            return printable(f"{paths[position]}: {reason}")
        return None

    def attempts(start: int) -> list[str | None]:
        return [attempt(position) for position in range(start, min(start + AT_ONCE, len(paths)))]

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # of what is odd, and can be read nevertheless
        results = pool.map(attempts, range(0, len(paths), AT_ONCE))
        broken = [failure for several in results for failure in several if failure is not None]
    if broken:
        more = [f"and {len(broken) - LISTED} more"] if len(broken) > LISTED else []
        told = f"dataset: {len(broken)} of {len(paths)} pictures cannot be read; mend or delete them:"
        raise DataError("\n  ".join([told, *broken[:LISTED], *more]))


class PictureFiles:
    """Picture files, decoded when they are wanted; what worker processes are given."""

    def __init__(self, paths: Sequence[Path], size: tuple[int, int]) -> None:
        self.paths, self.size = paths, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> np.ndarray:
        """A picture, uint8 (3, height, width); raises ``DataError`` where the file is broken."""
        try:
            return decode(self.paths[position], self.size)
        except Exception as error:
            raise_lack(error)
            raise DataError(printable(f"{self.paths[position]} can no longer be read: {error}")) from error

    def stamp(self, position: int) -> str:
        """A file's path, bytes and time."""
        path = self.paths[position]
        known = path.stat() if path.exists() else None
        return repr((str(path), known and (known.st_size, known.st_mtime_ns)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all of them decoded, channels last: (N, height, width, 3)."""
        return len(self), *self.size, 3

    def decode_into(self, pictures: np.ndarray) -> None:
        """Fill an array of their ``shape``, uint8; raises ``DataError`` with all broken files."""

        def place(position: int) -> None:
            pictures[position] = decode(self.paths[position], self.size).transpose(1, 2, 0)

        each(self.paths, place)

    def check(self) -> None:
        """Decode every file once; raises ``DataError`` with all broken files.

        One pass at the start is little beside the hours after which a training would meet them.
        """
        each(self.paths, lambda position: decode(self.paths[position], self.size))


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
        """Of the pictures' places below ``root``, their sizes and what they hold.

        Of more than ``READ_WHOLE`` bytes it looks into ``LOOKED_INTO`` files, and only at how they begin.
        """
        paths = sorted(self._train + self._test)
        sizes = [path.stat().st_size if path.is_file() else None for path in paths]
        whole = sum(filter(None, sizes)) <= READ_WHOLE
        every = 1 if whole else -(-len(paths) // LOOKED_INTO)
        digest = hashlib.sha256()
        for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
            digest.update(repr((path.relative_to(self.root).as_posix(), size)).encode())
            if size and number % every == 0:
                with contextlib.suppress(OSError), path.open("rb") as file:  # told where it is decoded
                    digest.update(file.read(-1 if whole else BEGINNING))
        return digest.hexdigest()

    def read(self) -> Raw:
        """All pictures decoded where there is room for them, and otherwise checked, to be decoded while they are used.

        In memory if they fit, else in a memory map on the shelf.
        """
        everything = PictureFiles(self._train + self._test, self._size)
        count = len(self._train)
        pictures = self._decoded(everything)
        train: Inputs
        test: Inputs
        if pictures is None:
            train, test = PictureFiles(self._train, self._size), PictureFiles(self._test, self._size)
        else:
            pictures = pictures.transpose(0, 3, 1, 2)
            train, test = pictures[:count], pictures[count:]
        own = (test, np.array(self._test_labels)) if self._test else ()
        return Raw(train, np.array(self._train_labels), *own)

    def _decoded(self, everything: PictureFiles) -> np.ndarray | None:
        """All pictures (N, height, width, 3), a memory map where they do not fit memory; None for lack of room."""
        size = math.prod(everything.shape)
        fits = size <= room_for_data(self.device)
        told = f"{len(everything):,} pictures to {told_size(size)}"
        kept = self._kept(everything, told) if size > WORTH_KEEPING or not fits else None
        if kept is not None:
            return np.asarray(kept) if fits else kept
        if not fits:
            self._say(f"checking {len(everything):,} pictures, to be decoded while they are used")
            everything.check()
            return None
        if size > WORTH_KEEPING:
            self._say(f"decoding {told} of memory")
        pictures = np.empty(everything.shape, np.uint8)
        everything.decode_into(pictures)
        return pictures

    def _kept(self, everything: PictureFiles, told: str) -> np.ndarray | None:
        """A memory map of the pictures on the shelf, made if need be; None where there is no shelf or no room on it."""
        if self._shelf is None:
            return None
        key, shelf = self._key(everything), self._shelf
        found = shelf.find(key)
        if found is None:
            height, width = self._size
            about = {
                "what": f"{len(everything):,} pictures of {height}×{width}",
                "kind": "pictures",
                "root": str(self.root.absolute()),
                "size": [height, width],
            }
            try:
                with shelf.make(key, {"pictures": (everything.shape, "uint8")}, about) as arrays:
                    self._say(f"decoding {told} in {shelf.folder}, once")
                    everything.decode_into(arrays["pictures"])
            except StoreError as error:
                self._say(f"decoded pictures are not kept: {error}")
            found = shelf.find(key)
        return None if found is None else found.arrays["pictures"]

    def _key(self, everything: PictureFiles) -> str:
        """The pictures' name on a shelf: a hash of their files' names, bytes and times, and of the size."""
        digest = hashlib.sha256(repr((DECODED_AS, self._size)).encode())
        for path in everything.paths:
            known = path.stat() if path.exists() else None
            file = known and (known.st_size, known.st_mtime_ns)
            digest.update(repr((path.relative_to(self.root).as_posix(), file)).encode())
        return f"pictures-{digest.hexdigest()[:32]}"


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in IGNORED


def _class_folders(folder: Path) -> list[str]:
    """The sorted names of the folders in a folder; raises ``DataError`` where they are fewer than two."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and _visible(entry.name))
    except OSError as error:
        raise _closed(error) from error
    if len(names) < 2:
        raise DataError(
            f"dataset.root: {folder} has {len(names)} class folders ({', '.join(names) or 'none'}), and at least "
            "two are needed; it must hold a folder for each class, or `train` and `test` folders that do"
        )
    return names


def _demand_equal(train: list[str], test: list[str], folder: Path) -> None:
    missing, extra = sorted(set(train) - set(test)), sorted(set(test) - set(train))
    if missing or extra:
        told = [f"lacks {_some(missing)}"] * bool(missing) + [f"adds {_some(extra)}"] * bool(extra)
        raise DataError(
            f"dataset.root: {folder} has other classes than the training folder: it {' and '.join(told)}; "
            "both need the same class folders"
        )


def _list(folder: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    """The files of all classes in a fixed order, and their labels; raises ``DataError`` for an empty class."""
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_files(folder / name))
        if not found:
            raise DataError(
                f"dataset.root: {folder / name} holds no pictures; put some there or delete the folder"
            )
        paths += found
        labels += [label] * len(found)
    return paths, labels


def _files(folder: Path) -> Iterator[Path]:
    """All visible files in a folder, however deep; links to folders are not followed."""
    folders = [folder]
    while folders:  # os.walk goes no deeper than Python's stack
        place = folders.pop()
        try:
            with os.scandir(place) as found:
                entries = [entry for entry in found if _visible(entry.name)]
        except OSError as error:
            raise _closed(error) from error
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(place / entry.name)
            elif not (entry.is_symlink() and (place / entry.name).is_dir()):
                yield place / entry.name


def _closed(error: OSError) -> DataError:
    """What is said of a folder whose pictures would be missing without a word."""
    return DataError(
        f"dataset.root: {error.filename}: cannot be read: {error.strerror}; mend its permissions"
    )


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
    try:
        _demand_modest(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except DataError:
        raise
    except Exception as error:  # a damaged file fails in any way
        raise_lack(error)
        objects = "allow_pickle=False" in str(error)
        reason = "it holds Python objects" if objects else str(error) or "it is empty"
        raise DataError(
            f"{path}: cannot be read as .npz: {shown(reason, 200)}; write it by numpy.savez(FILE, x=…, y=…)"
        ) from error
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
        f"{key}{path}: holds {_some(arrays) or 'nothing'}; it must hold {', '.join(names[:-1])} and {LABELS}, or "
        f"{', '.join(pairs)}{''.join(near)}"
    )


def _part(arrays: Mapping[str, np.ndarray], names: Sequence[str], ending: str, path: Path) -> Read:
    """What has names that end so; the last are the labels'."""
    *inputs, labels = (arrays[name + ending] for name in names)
    for name, x in zip(names, inputs, strict=False):
        _demand_rows(x, labels, name + ending, path)
    return Read(dict(zip(names, inputs, strict=False)), labels)


def _some(names: Collection[object]) -> str:
    """The first of some names, and how many more there are."""
    more = [f"and {len(names) - LISTED} more"] if len(names) > LISTED else []
    return ", ".join([*(shown(name) for name in islice(names, LISTED)), *more])


def _demand_modest(path: Path) -> None:
    """Raise ``DataError`` for an archive with more in it than memory takes, or with less than its arrays claim."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        inside, room = sum(entry.file_size for entry in entries), available_memory()
        if inside > room:
            raise DataError(
                f"{path}: unpacks to {told_size(inside)}, and {told_size(room)} of memory are free"
            )
        for entry in entries:
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0
                if version > (1, 0):
                    read = np.lib.format.read_array_header_2_0
                shape, _, kind = read(file)
                if not kind.hasobject and math.prod(shape) * kind.itemsize > entry.file_size:
                    raise DataError(
                        f"{path}: {shown(entry.filename)} says that it is {shown(shape)} {shown(kind)}, and holds "
                        f"{told_size(entry.file_size)}; save the arrays again"
                    )


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
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            return _parse_csv(csv.reader(_lines(file, path)), path, config.label)
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path}: is not a .csv file in UTF-8: {error}; save it as one") from error


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    """A file's lines; raises ``DataError`` for one that would fill the memory."""
    while line := file.readline(LINE):
        if len(line) == LINE:
            raise DataError(f"{path}: has a line of more than {LINE:,} characters; mend the file")
        yield line


def _parse_csv(lines: Any, path: Path, label: str) -> tuple[list[Read], list[str]]:
    header = [name.strip() for name in next(lines, [])]
    if label not in header:
        known = did_you_mean(label, map(shown, header[:COLUMNS]), list_all=len(header) <= 20)
        raise DataError(
            f"{path}:1: there is no column '{label}' for the labels; write `label: COLUMN`; {known}"
        )
    at = header.index(label)
    columns = header[:at] + header[at + 1 :]
    rows, labels = [], []
    for cells in lines:
        if not cells:
            continue
        where = f"{path}:{lines.line_num}"
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells, but the header has {len(header)}; mend the line")
        label_cell = cells.pop(at).strip()
        if not label_cell:
            raise DataError(f"{where}: the label is missing; fill it in or delete the line")
        labels.append(label_cell)
        rows.append(_numbers(cells, columns, where))
    if not rows or not columns:
        raise DataError(f"{path}: holds no samples; it needs a header and rows of numbers and a label")
    return [Read({"x": np.stack(rows)}, np.array(labels))], columns


def _numbers(cells: list[str], columns: list[str], where: str) -> np.ndarray:
    """A row of finite numbers; raises ``DataError`` with the first cell that is none."""
    try:
        row = np.array([float(cell) for cell in cells])
    except ValueError:
        row = np.array([math.nan])
    if np.isfinite(row).all():
        return row
    column, cell = next((c, v) for c, v in zip(columns, cells, strict=True) if not _finite(v))
    raise DataError(
        f"{where}: column '{shown(column)}' holds '{shown(cell)}', which is no finite number; mend the cell, or leave "
        "the column or the line out"
    )


def _finite(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _inputs(parts: Sequence[np.ndarray], name: str, path: Path, shape: list[int] | None) -> list[np.ndarray]:
    """An input of each part of a file: tables (N, F) float64, or pictures (N, C, H, W), uint8 or float32 in [0, 1]."""
    found = [_input(x, name, path, shape) for x in parts]
    train, test = found[0], found[-1]
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise DataError(
            f"{path}: {name}_train {train.shape} {train.dtype} and {name}_test {test.shape} {test.dtype} are of "
            "different kinds; save both alike"
        )
    return found


def _input(x: np.ndarray, name: str, path: Path, shape: list[int] | None) -> np.ndarray:
    if x.dtype.kind not in "biuf":
        raise DataError(f"{path}: {name} holds {x.dtype}, not numbers; save it as uint8 or float32")
    if not np.isfinite(x).all():
        place = ", ".join(map(str, np.argwhere(~np.isfinite(x))[0]))
        raise DataError(f"{path}: {name}[{place}] is not a finite number; mend it, or leave the sample out")
    if x.ndim == 2 and shape is None:
        return x.astype(np.float64)
    return _unit_or_bytes(_channels_first(x, name, path, shape), name, path)


def _channels_first(x: np.ndarray, name: str, path: Path, shape: list[int] | None) -> np.ndarray:
    """Pictures (N, C, H, W): by ``shape`` where it is given, else by the axis that can be the channels'."""
    if shape is not None:
        channels, height, width = shape
        if x.shape[1:] in ((math.prod(shape),), tuple(shape)) or (1, *x.shape[1:]) == tuple(shape):
            return x.reshape(-1, *shape)
        if x.shape[1:] == (height, width, channels):
            return x.transpose(0, 3, 1, 2)
        raise DataError(f"dataset.shape: samples of shape {list(x.shape[1:])} cannot be read as {shape}")
    if x.ndim == 3:
        return x[:, None]
    first, last = x.ndim == 4 and x.shape[1] in CHANNELS, x.ndim == 4 and x.shape[-1] in CHANNELS
    if first == last:
        raise DataError(
            f"{path}: {name}: samples of shape {list(x.shape[1:])} are not clearly pictures; write `shape`: "
            f"{'[channels, height, width]' if name == 'x' else f'{{{name}: [channels, height, width]}}'}"
        )
    return x if first else x.transpose(0, 3, 1, 2)


def _unit_or_bytes(x: np.ndarray, name: str, path: Path) -> np.ndarray:
    low, high = float(x.min()), float(x.max())
    if x.dtype == np.uint8:
        return x
    if low >= 0 and high <= 1:
        return x.astype(np.float32)
    if low >= 0 and high <= 255 and (x == np.rint(x)).all():
        return x.astype(np.uint8)
    raise DataError(
        f"{path}: the pictures of {name} hold values from {low:g} to {high:g}; save them as whole numbers from 0 to "
        "255 or as floats from 0 to 1"
    )


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
            f"{path}: the test part has the classes {_some(unseen)} which no training "
            "sample has; leave them out, or bring samples of them"
        )
    return [str(value) for value in values], [np.searchsorted(values, labels) for labels in flat]
