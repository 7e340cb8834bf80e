"""Views: part of what a set's samples show, for students that see less than their teachers."""

from __future__ import annotations

import functools
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field, NonNegativeInt, model_validator
from torch import Tensor

from kdrun.contracts import DatasetConfig, Units
from kdrun.errors import DataError, did_you_mean, shown
from kdrun.schema import Schema, Sides, sides

LUMINANCE = (0.299, 0.587, 0.114)
"""What red, green and blue count in grey, as ITU-R Recommendation BT.601 has it."""
LISTED, SOUGHT = 20, 1000
"""Columns up to which an error names them all, and among which a name is looked for that is nearly right."""


class View(Schema):
    """Part of what each sample shows: some columns of a table, or of a picture its crop, size and grey in turn."""

    columns: list[NonNegativeInt | str] | None = Field(default=None, min_length=1)
    """of a table: which columns, by name, or by number counted from 0"""
    crop: Sides | None = None
    """of a picture: a window of so many pixels; one number for squares, or [height, width]"""
    at: list[NonNegativeInt] | None = Field(default=None, min_length=2, max_length=2)
    """[row, column] of the window's first pixel, counted from 0; in the middle where nothing is said"""
    size: Sides | None = None
    """of a picture: so many pixels, each the mean of those that lie in its place, and be it in part"""
    grey: bool = False
    """of a picture in colour: its luminance, 0.299 red + 0.587 green + 0.114 blue, as the only channel"""

    @model_validator(mode="after")
    def _leave_something_out(self) -> Self:
        if self.at is not None and self.crop is None:
            raise ValueError("'at' is the place of a crop; write `crop`, too")
        if not (self.columns or self.crop or self.size or self.grey):
            raise ValueError("it shows all that the default view does; write columns, crop, size or grey")
        return self

    def shape(self, key: str, of: tuple[int, ...]) -> tuple[int, ...]:
        """Of samples of a shape what the view's is; raises ``DataError`` where they have no such part."""
        if len(of) == 3:
            return self.window(key, of).shape
        for part in ("crop", "size", "grey"):
            if getattr(self, part):
                words = f"the samples are rows of {of[0]} numbers, and this is for pictures"
                raise DataError(f"{key}.{part}: {words}; write `columns`")
        assert self.columns is not None
        for column in self.columns:
            if isinstance(column, int) and column >= of[0]:
                words = f"there is no column {column}; they are counted from 0 to {of[0] - 1}"
                raise DataError(f"{key}.columns: {words}")
        return (len(self.columns),)

    def places(self, key: str, names: Sequence[str]) -> list[int]:
        """Where its columns are among those of a table; raises ``DataError`` for a name that is not there."""
        found: list[int] = []
        for column in self.columns or []:
            if isinstance(column, str) and column not in names:
                known = did_you_mean(column, map(shown, names[:SOUGHT]), list_all=len(names) <= LISTED)
                raise DataError(f"{key}.columns: there is no column '{shown(column)}'; {known}")
            place = column if isinstance(column, int) else names.index(column)
            if place in found:
                raise DataError(f"{key}.columns: '{shown(names[place])}' is there twice; write it once")
            found.append(place)
        return found

    def window(self, key: str, of: tuple[int, ...], stds: Tensor | None = None) -> Window:
        """What makes it of pictures of a shape; raises ``DataError`` where they have no such part.

        ``stds`` (C, 1, 1) are those by which they are normalised; without them only its form is known.
        """
        channels, *whole = of
        if self.columns:
            words = f"the samples are pictures of {_times(of)} numbers, and this is for tables"
            raise DataError(f"{key}.columns: {words}; write `crop`, `size` or `grey`")
        window = sides(self.crop) if self.crop else whole
        size = sides(self.size) if self.size else window
        for part, inner, outer in (("crop", window, whole), ("size", size, window)):
            if any(map(operator.gt, inner, outer)):
                raise DataError(
                    f"{key}.{part}: {_times(inner)} pixels of {_times(outer)}; write no more than there are"
                )
        room = [side - part for side, part in zip(whole, window, strict=True)]
        place = self.at or [side // 2 for side in room]
        if any(map(operator.gt, place, room)):
            words = f"from there on {_times(window)} pixels reach out of {_times(whole)}"
            raise DataError(f"{key}.at: {words}; write at most {room}")
        if self.grey and channels != len(LUMINANCE):
            words = f"it is made of red, green and blue, and the pictures have {channels} channel"
            raise DataError(f"{key}.grey: {words}{'s' * (channels > 1)}; leave it out")
        rows, columns = map(_spans, place, window, size)
        counts = None
        if self.grey and stds is not None:
            weighted = np.array(LUMINANCE) * stds.flatten().double().cpu().numpy()
            counts = tuple((weighted / weighted.sum()).tolist())
        return Window(rows, columns, channels, self.grey, counts)


def _times(sides: Sequence[int]) -> str:
    return "×".join(map(str, sides))


def _named(written: str, what: str) -> str:
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", written):
        raise ValueError(f"'{shown(written)}' is no name of {what}; write letters, digits, '-' and '_'")
    return written


ViewName = Annotated[str, AfterValidator(functools.partial(_named, what="a view"))]
EnvironmentName = Annotated[str, AfterValidator(functools.partial(_named, what="an environment"))]


class ViewsConfig(DatasetConfig):
    """Options of sets whose samples can be shown in part."""

    views: dict[ViewName, View] = {}
    """further views by name, for a teacher or a student that says `view: NAME`: each is part of the default one"""


class Reduction(ABC):
    """What makes a view of the default one: linear, and of each sample by itself."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The view's."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """The view's inputs (B, …), of those of the default one."""

    @abstractmethod
    def units(self, of: Units) -> Units:
        """The view's units, of those of the default one; means are seen as they say up to rounding."""


@dataclass(frozen=True)
class Columns(Reduction):
    """Some columns of a table, by their places (F,) in it."""

    places: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """As many as there are."""
        return (len(self.places),)

    def __call__(self, x: Tensor) -> Tensor:
        """Rows with these columns only."""
        return x.index_select(1, self.places)

    def units(self, of: Units) -> Units:
        """Those of these columns."""
        places = self.places.cpu().numpy()
        names = tuple(of.names[place] for place in places)
        return replace(of, names=names, offset=of.offset[places], scale=of.scale[places])


Spans = Sequence[tuple[int, int]]
"""Of each row of a view's pixels, or column, the first and the last one of the pictures' that it covers."""


def _spans(first: int, length: int, size: int) -> Spans:
    """Of ``size`` rows that cover ``length`` from the ``first`` on."""
    ends = [-(number * length // -size) for number in range(1, size + 1)]
    return [(first + number * length // size, first + end - 1) for number, end in enumerate(ends)]


@dataclass(frozen=True)
class Window(Reduction):
    """A window of pictures of so many ``channels``, averaged down and perhaps turned grey.

    ``counts`` are what the normalised channels count in grey.
    """

    rows: Spans
    columns: Spans
    channels: int
    grey: bool
    counts: Sequence[float] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return 1 if self.grey else self.channels, len(self.rows), len(self.columns)

    def __call__(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W), channels last in memory."""
        (top, bottom), (left, right) = (
            (spans[0][0], spans[-1][1] + 1) for spans in (self.rows, self.columns)
        )
        x = _averaged(x[:, :, top:bottom, left:right], len(self.rows), len(self.columns))
        if self.grey:
            assert self.counts is not None, "only its form is known"
            x = _added(x[:, n : n + 1] * count for n, count in enumerate(self.counts))
        return x.contiguous(memory_format=torch.channels_last)

    def units(self, of: Units) -> Units:
        """Of a mean those of the pixels that it is of, and of grey the channels' weighted as they are in it."""
        offset, std = (figures.reshape(self.channels, -1)[:, 0] for figures in (of.offset, 1 / of.scale))
        if self.grey:
            offset, std = (np.array([figures @ np.array(LUMINANCE)]) for figures in (offset, std))
        names = tuple(
            _covered(rows, columns) + of_channel(channel, len(offset))
            for channel in range(len(offset))
            for rows in self.rows
            for columns in self.columns
        )
        each = len(names) // len(offset)
        return replace(of, names=names, offset=offset.repeat(each), scale=1 / std.repeat(each))


def _averaged(x: Tensor, height: int, width: int) -> Tensor:
    """Pictures averaged down to a size; on a CPU each has the same bits in whichever batch it is."""
    if x.shape[2:] == (height, width):
        return x
    (tall, rest), (wide, left) = divmod(x.shape[2], height), divmod(x.shape[3], width)
    if rest or left:
        return F.adaptive_avg_pool2d(x, (height, width))
    lines = _added(x[:, :, row::tall] for row in range(tall))  # several times as fast as to pool
    return _added(lines[:, :, :, column::wide] for column in range(wide)) / (tall * wide)


def _added(parts: Iterable[Tensor]) -> Tensor:
    """The sum of tensors, one after the other: sums over a dimension depend on what else there is."""
    return functools.reduce(operator.add, parts)


def _covered(rows: tuple[int, int], columns: tuple[int, int]) -> str:
    """What a pixel of a view is called, by those that it covers."""
    (top, bottom), (left, right) = rows, columns
    first, last = f"{top},{left}", f"{bottom},{right}"
    return f"pixel {first}" if first == last else f"mean of pixels {first} to {last}"


def of_channel(channel: int, channels: int) -> str:
    """What follows a pixel's name where there are several channels."""
    return f" of channel {channel}" if channels > 1 else ""
