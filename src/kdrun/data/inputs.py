"""Inputs: what a set has of each sample, a row of a table or a picture, and how a model sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from kdrun.contracts import Units
from kdrun.data import augmentation
from kdrun.data.shades import BYTE, Shades
from kdrun.data.sources import Inputs, Source, Stored, source
from kdrun.data.views import Columns, Reduction, View, of_channel
from kdrun.memory import room_for_data

CHUNK = 256
"""Samples that a pass over a whole split looks at in one piece."""


def chunks(inputs: Inputs, rows: np.ndarray) -> Iterator[Tensor]:
    """The samples of some rows (N,) in their order, some at a time, on the CPU and as they were read."""
    for samples in source(inputs, torch.device("cpu")).gather(torch.from_numpy(rows), CHUNK):
        yield samples.permute(0, 3, 1, 2).contiguous() if samples.ndim == 4 else samples


class Input(ABC):
    """One input of a set; ``columns`` are the names of a table's, none for pictures."""

    def __init__(self, shape: tuple[int, ...], columns: Sequence[str] = ()) -> None:
        self.shape, self.columns = shape, columns

    @abstractmethod
    def load(
        self,
        train: Inputs,
        rows: np.ndarray,
        everything: Sequence[Inputs],
        device: torch.device,
        changed: bool,
    ) -> list[Source]:
        """Put all that was read at hand on a device; ``rows`` (N,) of ``train`` are the training split.

        ``changed`` says whether samples are augmented before a model sees them.
        """

    @abstractmethod
    def seen(
        self,
        samples: Tensor,
        parts: Sequence[augmentation.Part] = (),
        drawn: Sequence[augmentation.Drawn] = (),
    ) -> Tensor:
        """Samples of a source as a model sees them (B, …), augmented by some parts."""

    @abstractmethod
    def units(self) -> Units:
        """What its numbers are called and how they are measured; known when it is loaded."""

    @abstractmethod
    def reduction(self, key: str, view: View) -> Reduction:
        """What makes a view of it that a key asks for; raises ``DataError`` for a column that is not there."""


class Table(Input):
    """Rows (F,), standardised by the training split's mean and std, reckoned in float64 and kept in float32.

    Constant columns are 0.
    """

    def __init__(self, shape: tuple[int, ...], columns: Sequence[str] = ()) -> None:
        super().__init__(shape, columns or [f"x{place}" for place in range(shape[0])])

    def load(
        self,
        train: Inputs,
        rows: np.ndarray,
        everything: Sequence[Inputs],
        device: torch.device,
        changed: bool,
    ) -> list[Source]:
        """All rows, standardised."""
        own = np.asarray(train, np.float64)[rows]
        varies = own.max(0) > own.min(0)  # rounding gives a constant column a tiny std
        mean, scale = own.mean(0), np.divide(1, own.std(0), out=np.zeros(own.shape[1]), where=varies)
        self._standard, self._device = (mean, scale), device
        return [
            source(((np.asarray(inputs, np.float64) - mean) * scale).astype(np.float32), device)
            for inputs in everything
        ]

    def seen(
        self,
        samples: Tensor,
        parts: Sequence[augmentation.Part] = (),
        drawn: Sequence[augmentation.Drawn] = (),
    ) -> Tensor:
        """The rows as they are kept."""
        assert not parts, "augmentation is for pictures"
        return samples

    def units(self) -> Units:
        """Its columns."""
        return Units(told_apart(self.columns), *self._standard)

    def reduction(self, key: str, view: View) -> Reduction:
        """Some of its columns."""
        places = view.places(key, told_apart(self.columns))
        return Columns(torch.tensor(places, device=self._device))


class Pictures(Input):
    """Pictures (C, H, W), normalised by a mean and a std of each channel on the scale of [0, 1].

    Where none are given they are those of the training split. ``white`` is what is white where they come from, whole
    numbers from 0 on, before they were spread to 255.
    """

    def __init__(
        self, shape: tuple[int, ...], mean: Sequence[float] = (), std: Sequence[float] = (), white: int = BYTE
    ) -> None:
        super().__init__(shape)
        self._given, self._white = (mean, std), white

    def load(
        self,
        train: Inputs,
        rows: np.ndarray,
        everything: Sequence[Inputs],
        device: torch.device,
        changed: bool,
    ) -> list[Source]:
        """All pictures as they were read; normalised once where nothing changes them and there is room."""
        self._floats = getattr(train, "dtype", None) == np.float32
        figures = self._given if self._given[0] else self._figures(train, rows)
        mean, std = (torch.as_tensor(one).float().view(-1, 1, 1).to(device) for one in figures)
        self.normaliser = mean, std
        self._colours = [one.flatten().repeat(self.shape[1] * self.shape[2]) for one in self.normaliser]
        sources = [source(inputs, device) for inputs in everything]
        self._as_seen = not changed and self._normalise(sources, device)
        return sources

    def _figures(self, train: Inputs, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C,) of each channel."""
        total = torch.zeros(2, self.shape[0], dtype=torch.float64)
        for samples in chunks(train, rows):
            values = augmentation.unit(samples).double()
            total += torch.stack([values.mean((2, 3)).sum(0), values.square().mean((2, 3)).sum(0)])
        mean, square = total / len(rows)
        std = (square - mean.square()).clamp(min=0).sqrt()
        std[std < 1e-6] = 1  # a channel of one colour
        return mean, std

    def _normalise(self, sources: Sequence[Source], device: torch.device) -> bool:
        """Normalise what is stored where all of it is, and there is room; whether that was done."""
        stored = [one for one in sources if isinstance(one, Stored)]
        size = sum(one.numbers for one in stored) * torch.float32.itemsize
        if len(stored) < len(sources) or size > room_for_data(device):
            return False
        for one in stored:
            one.change(self._normalised, CHUNK)
        return True

    def seen(
        self,
        samples: Tensor,
        parts: Sequence[augmentation.Part] = (),
        drawn: Sequence[augmentation.Drawn] = (),
    ) -> Tensor:
        """The pictures, augmented and normalised, channels last in memory."""
        if parts:
            pictures = augmentation.apply(parts, samples.permute(0, 3, 1, 2), self.normaliser[0], drawn)
            samples = pictures.permute(0, 2, 3, 1)
        seen = samples if self._as_seen else self._normalised(samples)
        return seen.permute(0, 3, 1, 2)

    def _normalised(self, samples: Tensor) -> Tensor:
        """Pictures (B, H, W, C) in [0, 1] or of bytes, by the mean and the std of each channel."""
        values = augmentation.unit(samples).reshape(len(samples), -1)
        mean, std = self._colours
        return (values - mean).div_(std).view(samples.shape)

    def units(self) -> Units:
        """Its pixels."""
        channels, height, width = self.shape
        mean, std = (
            np.repeat(figures.flatten().double().cpu().numpy(), height * width) for figures in self.normaliser
        )
        names = tuple(
            f"pixel {row},{column}" + of_channel(channel, channels)
            for channel in range(channels)
            for row in range(height)
            for column in range(width)
        )
        return Shades(names, mean, 1 / std, None if self._floats else self._white)

    def reduction(self, key: str, view: View) -> Reduction:
        """A window of it."""
        return view.window(key, self.shape, self.normaliser[1])


def told_apart(names: Sequence[str]) -> tuple[str, ...]:
    """Names of which no two are the same and none is empty: the second ``width`` is ``width (2)``."""
    found: dict[str, None] = {}
    for place, name in enumerate(names):
        number, unique = 1, (name := name or f"x{place}")
        while unique in found:
            number += 1
            unique = f"{name} ({number})"
        found[unique] = None
    return tuple(found)
