"""Files that samples are read from: pictures in folders, and arrays in .npz and .csv files."""

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
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from PIL import Image

from kdrun.contracts import Shelf
from kdrun.errors import DataError, StoreError, printable, shown
from kdrun.machine import available_memory, raise_lack, return_freed_memory, told_size
from kdrun.memory import room_for_data

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
LARGE = 20_000_000
"""Pixels from which on pictures are decoded one at a time: a file of a few kB may hold nearly ten times as many."""
_one_large = threading.Lock()
IGNORED = {"thumbs.db", "desktop.ini", "__macosx"}
"""What file managers leave in folders, apart from hidden files."""
CHANNELS = {1, 3, 4}
"""Sizes by which the axis of the channels is known."""
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""What pictures may be, as Pillow calls it: all that it decodes by itself. PostScript, for one, is a program."""
MODES = {1: "L", 3: "RGB"}
"""How Pillow calls pictures of so many channels."""


# --------------------------------------------------------------------------------- a folder of pictures


def decode(path: Path, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """A picture file, RGB or grey, uint8 (channels, *size), resized to ``size`` (height, width), whatever its ratio.

    Bilinear, with antialiasing where it shrinks; of 16 bits of grey the upper 8 are kept; an animation's first
    picture is taken. Raises whatever Pillow raises for a broken file.
    """
    if not path.is_file():  # or a pipe would be waited for
        raise ValueError("is not there, or no regular file")
    with Image.open(path, formats=_formats()) as image:
        if image.width * image.height <= LARGE:
            return _resized(image, size, channels)
        with _one_large:
            pixels = _resized(image, size, channels)
            image.close()
            return_freed_memory()
        return pixels


def _resized(image: Image.Image, size: tuple[int, int], channels: int) -> np.ndarray:
    """An open picture as ``decode`` gives it."""
    if image.mode == "F":
        raise ValueError("pictures of floating-point numbers have no known range")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode != MODES[channels]:
        image = image.convert(MODES[channels])
    pixels = np.array(image.resize(size[::-1], Image.Resampling.BILINEAR))
    return pixels.reshape(*size, channels).transpose(2, 0, 1)


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

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], channels: int = 3) -> None:
        self.paths, self.form = paths, (size, channels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> np.ndarray:
        """A picture, uint8 (C, height, width); raises ``DataError`` where the file is broken."""
        try:
            return decode(self.paths[position], *self.form)
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
        """Of all of them decoded, channels last: (N, height, width, C)."""
        size, channels = self.form
        return len(self), *size, channels

    def decode_into(self, pictures: np.ndarray) -> None:
        """Fill an array of their ``shape``, uint8; raises ``DataError`` with all broken files."""

        def place(position: int) -> None:
            pictures[position] = decode(self.paths[position], *self.form).transpose(1, 2, 0)

        each(self.paths, place)

    def check(self) -> None:
        """Decode every file once; raises ``DataError`` with all broken files.

        One pass at the start is little beside the hours after which a training would meet them.
        """
        each(self.paths, lambda position: decode(self.paths[position], *self.form))


def contents(paths: Sequence[Path], root: Path) -> str:
    """SHA-256 of the files' places below ``root``, their sizes and what they hold.

    Of more than ``READ_WHOLE`` bytes it looks into ``LOOKED_INTO`` files, and only at how they begin.
    """
    sizes = [path.stat().st_size if path.is_file() else None for path in paths]
    whole = sum(filter(None, sizes)) <= READ_WHOLE
    every = 1 if whole else -(-len(paths) // LOOKED_INTO)
    digest = hashlib.sha256()
    for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        digest.update(repr((path.relative_to(root).as_posix(), size)).encode())
        if size and number % every == 0:
            with contextlib.suppress(OSError), path.open("rb") as file:  # told where it is decoded
                digest.update(file.read(-1 if whole else BEGINNING))
    return digest.hexdigest()


def decoded(
    pictures: PictureFiles, root: Path, device: torch.device, shelf: Shelf | None, say: Callable[[str], None]
) -> np.ndarray | None:
    """All pictures (N, height, width, C) of files below ``root``, or None for lack of room, after they were checked.

    In memory if they fit, else in a memory map on the shelf.
    """
    size = math.prod(pictures.shape)
    fits = size <= room_for_data(device)
    told = f"{len(pictures):,} pictures to {told_size(size)}"
    kept = _kept(pictures, root, shelf, say, told) if size > WORTH_KEEPING or not fits else None
    if kept is not None:
        return np.asarray(kept) if fits else kept
    if not fits:
        say(f"checking {len(pictures):,} pictures, to be decoded while they are used")
        pictures.check()
        return None
    if size > WORTH_KEEPING:
        say(f"decoding {told} of memory")
    found = np.empty(pictures.shape, np.uint8)
    pictures.decode_into(found)
    return found


def _kept(
    pictures: PictureFiles, root: Path, shelf: Shelf | None, say: Callable[[str], None], told: str
) -> np.ndarray | None:
    """A memory map of the pictures on the shelf, made if need be; None where there is no shelf or no room on it."""
    if shelf is None:
        return None
    key = _key(pictures, root)
    found = shelf.find(key)
    if found is None:
        (height, width), _ = pictures.form
        about = {
            "what": f"{len(pictures):,} pictures of {height}×{width}",
            "kind": "pictures",
            "root": str(root.absolute()),
            "size": [height, width],
        }
        try:
            with shelf.make(key, {"pictures": (pictures.shape, "uint8")}, about) as arrays:
                say(f"decoding {told} in {shelf.folder}, once")
                pictures.decode_into(arrays["pictures"])
        except StoreError as error:
            say(f"decoded pictures are not kept: {error}")
        found = shelf.find(key)
    return None if found is None else found.arrays["pictures"]


def _key(pictures: PictureFiles, root: Path) -> str:
    """The pictures' name on a shelf: a hash of their files' names, bytes and times, and of their form."""
    size, channels = pictures.form
    digest = hashlib.sha256(repr((DECODED_AS, size, *[channels] * (channels != 3))).encode())
    for path in pictures.paths:
        known = path.stat() if path.exists() else None
        file = known and (known.st_size, known.st_mtime_ns)
        digest.update(repr((path.relative_to(root).as_posix(), file)).encode())
    return f"pictures-{digest.hexdigest()[:32]}"


def visible(name: str) -> bool:
    """Whether a file or folder is none that is hidden, and none that a file manager left."""
    return not name.startswith(".") and name.lower() not in IGNORED


def files_in(folder: Path, key: str) -> Iterator[Path]:
    """All visible files in the folder of a config's key, however deep; links to folders are not followed."""
    folders = [folder]
    while folders:  # os.walk goes no deeper than Python's stack
        place = folders.pop()
        try:
            with os.scandir(place) as found:
                entries = [entry for entry in found if visible(entry.name)]
        except OSError as error:
            raise closed(error, key) from error
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(place / entry.name)
            elif not (entry.is_symlink() and (place / entry.name).is_dir()):
                yield place / entry.name


def closed(error: OSError, key: str) -> DataError:
    """What is said of a folder whose pictures would be missing without a word."""
    return DataError(
        f"dataset.{key}: {error.filename}: cannot be read: {error.strerror}; mend its permissions"
    )


# ----------------------------------------------------------------------------------------------- arrays


def archive(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file; raises ``DataError`` where it cannot be read, or holds what would be unpickled."""
    try:
        _demand_modest(path)
        with np.load(path, allow_pickle=False) as opened:
            return {name: opened[name] for name in opened.files}
    except DataError:
        raise
    except Exception as error:  # a damaged file fails in any way
        raise_lack(error)
        objects = "allow_pickle=False" in str(error)
        reason = "it holds Python objects" if objects else str(error) or "it is empty"
        raise DataError(
            f"{path}: cannot be read as .npz: {shown(reason, 200)}; write it by numpy.savez(FILE, x=…, y=…)"
        ) from error


def some(names: Collection[object]) -> str:
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


def rows_of_csv(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The header of a .csv file, and each row of it that is not empty, with their places; raises ``DataError``."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(_lines(file, path))
        try:
            header = [name.strip() for name in next(lines, [])]
            yield f"{path}:1", header
            for cells in filter(None, lines):
                where = f"{path}:{lines.line_num}"
                if len(cells) != len(header):
                    raise DataError(
                        f"{where}: {len(cells)} cells, but the header has {len(header)}; mend the line"
                    )
                yield where, cells
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path}: is not a .csv file in UTF-8: {error}; save it as one") from error


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    """A file's lines; raises ``DataError`` for one that would fill the memory."""
    while line := file.readline(LINE):
        if len(line) == LINE:
            raise DataError(f"{path}: has a line of more than {LINE:,} characters; mend the file")
        yield line


def numbers(cells: list[str], columns: list[str], where: str) -> np.ndarray:
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


def as_inputs(x: np.ndarray, name: str, path: Path, shape: list[int] | None) -> np.ndarray:
    """What a file calls so: a table (N, F) float64, or pictures (N, C, H, W), uint8 or float32 in [0, 1]."""
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
        if (read := of_shape(x, shape)) is None:
            raise DataError(f"dataset.shape: samples of shape {list(x.shape[1:])} cannot be read as {shape}")
        return read
    if x.ndim == 3:
        return x[:, None]
    first, last = x.ndim == 4 and x.shape[1] in CHANNELS, x.ndim == 4 and x.shape[-1] in CHANNELS
    if first == last:
        raise DataError(
            f"{path}: {name}: samples of shape {list(x.shape[1:])} are not clearly pictures; write `shape`: "
            f"{'[channels, height, width]' if name == 'x' else f'{{{name}: [channels, height, width]}}'}"
        )
    return x if first else x.transpose(0, 3, 1, 2)


def of_shape(x: np.ndarray, shape: Sequence[int]) -> np.ndarray | None:
    """Samples as pictures (N, C, H, W) of a ``shape``, however their axes lie; None where that cannot be."""
    channels, height, width = shape
    if x.shape[1:] in ((math.prod(shape),), tuple(shape)) or (1, *x.shape[1:]) == tuple(shape):
        return x.reshape(-1, *shape)
    return x.transpose(0, 3, 1, 2) if x.shape[1:] == (height, width, channels) else None


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
