"""Random changes of pictures, a batch at a time on its device, each sample with its own parameters.

A part draws its parameters, on the CPU so that every device gets the same ones, and applies them: apart, because the
parameters of fixed copies are drawn for all samples at once and applied by the batch. Pictures are (B, C, H, W), best
channels last in memory, before they are normalised: float32 in [0, 1], or uint8 for the parts that only move pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from torch import Tensor

from kdrun.data.views import ViewsConfig
from kdrun.schema import Schema, form, kind_alone

Drawn = tuple[Tensor, ...]
"""What a part drew for N samples: tensors (N,) on the CPU."""
Size = tuple[int, int]
"""Height and width of the pictures."""


def unit(pictures: Tensor) -> Tensor:
    """Pictures, uint8 or float32, as float32 in [0, 1]."""
    return pictures.float().div_(255) if pictures.dtype == torch.uint8 else pictures


def factors(samples: int, most: float, draw: torch.Generator) -> Tensor:
    """One number in [1 - most, 1 + most] a sample, (N,)."""
    return torch.empty(samples).uniform_(1 - most, 1 + most, generator=draw)


def crop(pictures: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """The windows at ``top`` and ``left`` (B,), each in [0, 2·padding], of the zero-padded pictures."""
    samples, channels, height, width = pictures.shape
    tall, wide = height + 2 * padding, width + 2 * padding
    padded = pictures.new_zeros(samples, tall, wide, channels)
    padded[:, padding : padding + height, padding : padding + width] = pictures.permute(0, 2, 3, 1)
    # A window's line is `width` pixels that lie together, so all of them come by where they begin.
    lines = padded.as_strided((samples * tall * wide - width + 1, width * channels), (channels, 1))
    rows = (torch.arange(samples) * tall + top)[:, None] + torch.arange(height)
    starts = (rows * wide + left[:, None]).flatten().to(pictures.device)
    windows = lines.index_select(0, starts).view(samples, height, width, channels)
    return windows.permute(0, 3, 1, 2)


def boxes(rows: Tensor, columns: Tensor, channels: int = 1) -> Tensor:
    """1 where the rows (B, H) and the columns (B, W) are both marked, 0 elsewhere: float32 (B, H, W, channels).

    As a weight of ``lerp``, of which 0 and 1 are exact, it chooses several times faster than a mask of ``where``.
    """
    across = columns.float().repeat_interleave(channels, dim=1)
    return (rows.float()[:, :, None] * across[:, None, :]).view(*rows.shape, -1, channels)


class Crop(Schema):
    """A window of the picture's own size from the zero-padded (black) picture, all offsets equally likely."""

    kind: Literal["crop"]
    padding: int = Field(default=4, ge=1)
    """pixels added on each side"""

    moves: ClassVar[bool] = True
    """Whether pixels are moved and none is changed, so that the part can work on uint8."""

    def draw(self, samples: int, size: Size, generator: torch.Generator) -> Drawn:
        """The first row and column (N,) int64 of each window in the padded picture, in [0, 2·padding]."""
        top, left = torch.randint(2 * self.padding + 1, (2, samples), generator=generator)
        return top, left

    def apply(self, pictures: Tensor, mean: Tensor, drawn: Drawn) -> Tensor:
        """The windows of the pictures."""
        top, left = drawn
        return crop(pictures, top, left, self.padding)


class Flip(Schema):
    """Left and right exchanged in half of the pictures."""

    kind: Literal["flip"]

    moves: ClassVar[bool] = True

    def draw(self, samples: int, size: Size, generator: torch.Generator) -> Drawn:
        """Whether each picture is flipped, (N,) bool."""
        return (torch.empty(samples).uniform_(generator=generator) < 0.5,)

    def apply(self, pictures: Tensor, mean: Tensor, drawn: Drawn) -> Tensor:
        """The pictures, half of them flipped."""
        lines = pictures.permute(0, 2, 3, 1)
        either = torch.cat(
            [lines, lines.flip(2)]
        )  # to choose from by whole pictures is faster than by pixels
        (flipped,) = drawn
        chosen = torch.arange(len(lines)) + flipped * len(lines)
        return either.index_select(0, chosen.to(pictures.device)).permute(0, 3, 1, 2)


class Jitter(Schema):
    """Brightness, then contrast about the picture's own mean, each by a factor in [1 - x, 1 + x].

    On grey pictures the same as torchvision's `ColorJitter`, but that draws the order of the two as well. On coloured
    ones its contrast is about the mean of the picture turned grey, in which green counts most; here all channels
    count alike, whatever they hold.
    """

    kind: Literal["jitter"]
    brightness: float = Field(default=0.2, ge=0, le=1)
    """how far the factor of the brightness may be from 1"""
    contrast: float = Field(default=0.2, ge=0, le=1)
    """how far the factor of the contrast may be from 1"""

    moves: ClassVar[bool] = False

    def draw(self, samples: int, size: Size, generator: torch.Generator) -> Drawn:
        """The factors of the brightness and of the contrast, (N,) float32 each."""
        return factors(samples, self.brightness, generator), factors(samples, self.contrast, generator)

    def apply(self, pictures: Tensor, mean: Tensor, drawn: Drawn) -> Tensor:
        """The pictures with other brightness and contrast."""
        bright, contrast = (factor.view(-1, 1, 1, 1).to(pictures.device) for factor in drawn)
        pictures = (pictures * bright).clamp_(0, 1)
        centre = _means(pictures)
        return (pictures - centre).mul_(contrast).add_(centre).clamp_(0, 1)


def _means(pictures: Tensor) -> Tensor:
    """The mean of each picture, (B, 1, 1, 1); on a CPU with the same bits in whichever batch it is."""
    values = pictures.contiguous().flatten(1)  # sums depend on the order in memory
    if len(values) == 1:  # the sum of a single row would be shared out among threads
        values = values.expand(2, -1)
    return values.mean(1)[: len(pictures)].view(-1, 1, 1, 1)


class Cutout(Schema):
    """A square, centred anywhere in the picture and cut off at its border, filled with the mean colour.

    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017. torchvision's
    `RandomErasing` is another thing: its rectangles vary in area and form and lie inside the picture.
    """

    kind: Literal["cutout"]
    size: int = Field(default=8, ge=1)
    """the square's side in pixels"""

    moves: ClassVar[bool] = False

    def draw(self, samples: int, size: Size, generator: torch.Generator) -> Drawn:
        """Row and column (N,) int64 of each square's centre."""
        row, column = (torch.randint(length, (samples, 1), generator=generator) for length in size)
        return row[:, 0], column[:, 0]

    def apply(self, pictures: Tensor, mean: Tensor, drawn: Drawn) -> Tensor:
        """The pictures with a square out of each."""
        height, width = pictures.shape[2:]
        row, column = drawn
        holes = boxes(self._span(height, row), self._span(width, column), len(mean))
        colour = mean.flatten().repeat(height * width).view(height, width, -1)
        cut = pictures.permute(0, 2, 3, 1).lerp(colour, holes.to(mean.device))
        return cut.permute(0, 3, 1, 2)

    def _span(self, length: int, centre: Tensor) -> Tensor:
        """Whether a row or column of each picture is inside, (B, length)."""
        start = (centre - self.size // 2)[:, None]
        place = torch.arange(length)
        return (place >= start) & (place < start + self.size)


Part = Annotated[Crop | Flip | Jitter | Cutout, Field(discriminator="kind"), BeforeValidator(kind_alone)]


def draw(parts: Sequence[Part], samples: int, size: Size, generator: torch.Generator) -> list[Drawn]:
    """What each of the parts draws for so many samples, one after the other."""
    return [part.draw(samples, size, generator) for part in parts]


def apply(parts: Sequence[Part], pictures: Tensor, mean: Tensor, drawn: Sequence[Drawn]) -> Tensor:
    """The pictures with all parts applied in their order; still uint8 where the parts only move pixels."""
    for part, numbers in zip(parts, drawn, strict=True):
        pictures = part.apply(pictures if part.moves else unit(pictures), mean, numbers)
    return pictures


# ---------------------------------------------------------------------------------------------- options


Preset = Literal["none", "flip", "crop", "standard", "strong"]
Parts = Annotated[Annotated[Preset, Tag("one")] | Annotated[list[Part], Tag("many")], Discriminator(form)]

_CROP, _FLIP = Crop(kind="crop"), Flip(kind="flip")
PRESETS: dict[str, list[Part]] = {
    "none": [],
    "flip": [_FLIP],
    "crop": [_CROP],
    "standard": [_CROP, _FLIP],
    "strong": [_CROP, _FLIP, Jitter(kind="jitter"), Cutout(kind="cutout")],
}


def _any_part(given: Parts) -> Parts:
    if not parts(given):
        raise ValueError("copies without a part are all alike; write `parts: standard`")
    return given


class Copies(Schema):
    """Fixed augmented copies of each picture, drawn once by the data set's seed, through which students cycle."""

    copies: int = Field(ge=1)
    """how many; the students' epochs take them in turn"""
    parts: Annotated[Parts, AfterValidator(_any_part)] = "standard"
    """a preset's name or a list of parts"""


def _written_as(value: object) -> str:
    """The form in which an augmentation was written; no key is called as the third is, or paths were ambiguous."""
    return "fixed" if isinstance(value, Mapping | Copies) else form(value)


def _no_copies(value: object) -> object:
    if isinstance(value, Mapping):
        raise ValueError("a second view has no copies; write a preset's name or a list of parts")
    return value


Augmentation = Annotated[
    Annotated[Preset, Tag("one")] | Annotated[list[Part], Tag("many")] | Annotated[Copies, Tag("fixed")],
    Discriminator(_written_as),
]


class PictureConfig(ViewsConfig):
    """Options of sets of pictures."""

    augmentation: Augmentation = "none"
    """none, flip, crop (zero padding), standard (crop, flip), strong (and jitter, cutout), or a list of parts; with
    `{copies: K, parts: standard}` the students see K fixed copies of each picture in turn"""
    strong_view: Annotated[Parts, BeforeValidator(_no_copies)] | None = None
    """a second view of each picture, called `strong`, with an augmentation of its own: some losses compare two"""


def parts(augmentation: Preset | list[Part] | Copies) -> list[Part]:
    """The parts that a preset's name stands for, those given, or those of the copies."""
    if isinstance(augmentation, Copies):
        return parts(augmentation.parts)
    return PRESETS[augmentation] if isinstance(augmentation, str) else augmentation


def shortest(written: Any) -> Any:
    """An augmentation as it stands in an identity, with a preset's name for parts that are a preset written out."""
    if isinstance(written, dict):
        return written | {"parts": shortest(written["parts"])}
    for name, preset in PRESETS.items():
        if written == [part.model_dump(mode="json") for part in preset]:
            return name
    return written
