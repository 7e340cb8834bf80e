"""Random changes of pictures, a batch at a time on its device, each sample with its own parameters.

A part has ``apply(pictures, mean, draw)``: it gets float pictures (B, C, H, W) in [0, 1], before they are
normalised, the mean colour (C, 1, 1), and the generator of its parameters, which is on the CPU so that every device
gets the same ones.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Discriminator, Field, Tag
from torch import Tensor

from kdrun.contracts import DatasetConfig
from kdrun.schema import Schema, kind_alone


def uniform(low: float, high: float, like: Tensor, draw: torch.Generator) -> Tensor:
    """One number a sample, shaped (B, 1, 1, 1) to broadcast over the pictures ``like``."""
    return torch.empty(len(like)).uniform_(low, high, generator=draw).view(-1, 1, 1, 1).to(like.device)


def crop(pictures: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """The windows at ``top`` and ``left`` (B,), each in [0, 2·padding], of the zero-padded pictures."""
    height, width = pictures.shape[-2:]
    windows = F.pad(pictures, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(pictures), device=pictures.device), :, top, left]


class Crop(Schema):
    """A window of the picture's own size from the zero-padded (black) picture, all offsets equally likely."""

    kind: Literal["crop"]
    padding: int = Field(default=4, ge=1)
    """pixels added on each side"""

    def apply(self, pictures: Tensor, mean: Tensor, draw: torch.Generator) -> Tensor:
        """The windows of the pictures."""
        offsets = torch.randint(2 * self.padding + 1, (2, len(pictures)), generator=draw)
        top, left = offsets.to(pictures.device)
        return crop(pictures, top, left, self.padding)


class Flip(Schema):
    """Left and right exchanged in half of the pictures."""

    kind: Literal["flip"]

    def apply(self, pictures: Tensor, mean: Tensor, draw: torch.Generator) -> Tensor:
        """The pictures, half of them flipped."""
        return torch.where(uniform(0, 1, pictures, draw) < 0.5, pictures.flip(-1), pictures)


class Jitter(Schema):
    """Brightness, then contrast about the picture's own mean, each by a factor in [1 - x, 1 + x]."""

    kind: Literal["jitter"]
    brightness: float = Field(default=0.2, ge=0, le=1)
    """how far the factor of the brightness may be from 1"""
    contrast: float = Field(default=0.2, ge=0, le=1)
    """how far the factor of the contrast may be from 1"""

    def apply(self, pictures: Tensor, mean: Tensor, draw: torch.Generator) -> Tensor:
        """The pictures with other brightness and contrast."""
        bright = uniform(1 - self.brightness, 1 + self.brightness, pictures, draw)
        pictures = (pictures * bright).clamp(0, 1)
        centre = pictures.mean(dim=(1, 2, 3), keepdim=True)
        contrast = uniform(1 - self.contrast, 1 + self.contrast, pictures, draw)
        return (centre + (pictures - centre) * contrast).clamp(0, 1)


class Cutout(Schema):
    """A square, centred anywhere in the picture and cut off at its border, filled with the mean colour.

    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017.
    """

    kind: Literal["cutout"]
    size: int = Field(default=8, ge=1)
    """the square's side in pixels"""

    def apply(self, pictures: Tensor, mean: Tensor, draw: torch.Generator) -> Tensor:
        """The pictures with a square out of each."""
        height, width = pictures.shape[-2:]
        rows, columns = self._span(height, pictures, draw), self._span(width, pictures, draw)
        return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], mean, pictures)

    def _span(self, length: int, pictures: Tensor, draw: torch.Generator) -> Tensor:
        """Whether a row or column of each picture is inside, (B, length)."""
        start = torch.randint(length, (len(pictures), 1), generator=draw) - self.size // 2
        place = torch.arange(length)
        return ((place >= start) & (place < start + self.size)).to(pictures.device)


Part = Annotated[Crop | Flip | Jitter | Cutout, Field(discriminator="kind"), BeforeValidator(kind_alone)]


def form(value: object) -> str:
    """Whether an option was written as a list or as one value, so that errors speak of that form only."""
    return "many" if isinstance(value, list) else "one"


Preset = Literal["none", "flip", "crop", "standard", "strong"]
Augmentation = Annotated[
    Annotated[Preset, Tag("one")] | Annotated[list[Part], Tag("many")], Discriminator(form)
]

_CROP, _FLIP = Crop(kind="crop"), Flip(kind="flip")
PRESETS: dict[str, list[Part]] = {
    "none": [],
    "flip": [_FLIP],
    "crop": [_CROP],
    "standard": [_CROP, _FLIP],
    "strong": [_CROP, _FLIP, Jitter(kind="jitter"), Cutout(kind="cutout")],
}


class PictureConfig(DatasetConfig):
    """Options of sets of pictures."""

    augmentation: Augmentation = "none"
    """none, flip, crop (zero padding), standard (crop, flip), strong (and jitter, cutout), or a list of parts"""
    strong_view: Augmentation | None = None
    """a second view of each picture, called `strong`, with an augmentation of its own: some losses compare two"""


def parts(augmentation: Augmentation) -> list[Part]:
    """The parts that a preset's name stands for, or those given."""
    return PRESETS[augmentation] if isinstance(augmentation, str) else augmentation
