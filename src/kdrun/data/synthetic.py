"""Samples made up from a seed: for dry runs and tests of any shape."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import AfterValidator, Field

from kdrun.contracts import Spec
from kdrun.data.augmentation import PictureConfig
from kdrun.data.base import VIEW, Raw, SampleSet
from kdrun.errors import DataError
from kdrun.randomness import generator

Side = Annotated[int, Field(ge=1, le=100_000)]


def _picture_or_row(shape: list[int]) -> list[int]:
    if len(shape) not in (1, 3):
        raise ValueError("write [channels, height, width] for pictures or [columns] for a table")
    return shape


class Synthetic(SampleSet):
    """One prototype a class and noise about it; pictures' prototypes are coarse patterns of 4×4 patches."""

    class Config(PictureConfig):
        """Options of `synthetic`."""

        kind: Literal["synthetic"]
        shape: Annotated[list[Side], AfterValidator(_picture_or_row)] = [1, 28, 28]
        """[channels, height, width] of pictures or [columns] of a table"""
        classes: int = Field(default=10, ge=2, le=100_000)
        """how many classes"""
        samples: int = Field(default=512, ge=2, le=1_000_000_000)
        """training samples, as many of each class as of any other"""
        test_samples: int = Field(default=256, ge=1, le=1_000_000_000)
        """test samples"""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.samples < config.classes:
            raise DataError(
                f"dataset.samples: {config.samples} samples cannot show {config.classes} classes; "
                f"write at least {config.classes}"
            )
        self.samples = config.samples
        self._describe(Spec({VIEW: tuple(config.shape)}, config.classes))

    def read(self) -> Raw:
        """The samples, all made from ``dataset.seed``."""
        sizes = {"train": self.config.samples, "test": self.config.test_samples}
        parts = [self._draw(purpose, size) for purpose, size in sizes.items()]
        return Raw(*parts[0], *parts[1])

    def _draw(self, purpose: str, size: int) -> tuple[np.ndarray, np.ndarray]:
        labels = torch.arange(size) % self.config.classes
        noise = torch.randn(size, *self._shape, generator=generator(self.config.seed, "synthetic", purpose))
        values = noise.add_(self._prototypes()[labels])
        if self.pictures:
            values = values.mul_(40).add_(128).round_().clamp_(0, 255).to(torch.uint8)
        return values.numpy(), labels.numpy()

    def _prototypes(self) -> torch.Tensor:
        """One sample of each class without noise, (classes, …)."""
        draw = generator(self.config.seed, "synthetic", "prototypes")
        if not self.pictures:
            return torch.randn(self.config.classes, *self._shape, generator=draw)
        channels, height, width = self._shape
        patches = torch.randn(self.config.classes, channels, 4, 4, generator=draw)
        return patches[:, :, torch.arange(height) * 4 // height][..., torch.arange(width) * 4 // width]
