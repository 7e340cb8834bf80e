"""What a model wants of its inputs that the data set does not give: another size, or another normalisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from kdrun.contracts import Model, Units
from kdrun.errors import Mismatch, shown
from kdrun.schema import Schema

ROUNDING = 1e-7
"""A change that float32 would not show of numbers around 1."""


class Normalization(Schema):
    """By what inputs are normalised: (raw - mean) / std of each channel of a picture, or column of a table.

    Raw are pictures on the scale of [0, 1], and tables as they were measured.
    """

    mean: list[float] = Field(min_length=1)
    """of each channel or column; one number for all"""
    std: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """of each channel or column; one number for all"""

    @model_validator(mode="after")
    def _of_the_same(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} stds; write as many of each")
        return self

    def __str__(self) -> str:
        """As it is written in a config."""
        return "imagenet" if self == IMAGENET else f"{{mean: {self.mean}, std: {self.std}}}"

    def differs(self, shape: tuple[int, ...], units: Units) -> bool:
        """Whether it is another one than that of a view of a ``shape``, in what four digits after the point show.

        Of a view of other channels than it is of nobody can tell.
        """
        if shape[0] not in (1, len(self.mean)):
            return False
        pairs = zip((self.mean, self.std), _of_channels(units, shape[0]), strict=True)
        return not all(np.allclose(own, theirs, rtol=0, atol=1e-4) for own, theirs in pairs)


IMAGENET = Normalization(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def _by_name(written: object) -> object:
    if written == "imagenet":
        return IMAGENET
    if isinstance(written, str):
        raise ValueError(
            f"no normalisation is called '{shown(written)}'; write imagenet, or {{mean: [...], std: [...]}}"
        )
    return written


AnyNormalization = Annotated[
    Normalization, BeforeValidator(_by_name, json_schema_input_type=Literal["imagenet"] | Normalization)
]


@dataclass(frozen=True)
class Lens:
    """What a model sees of a view's inputs: resized, and normalised by a mean and a std of its own.

    It has no parameters. ``size`` is a height and a width; ``mean`` and ``std`` are those of a ``Normalization``, and
    empty where the view's own stay. ``factors`` (K, 1, 1), or (K,) for tables, are what that comes to for inputs that
    are normalised as the view is: ``x * factors[0] + factors[1]``; None where it comes to nothing.
    """

    size: tuple[int, int] | None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    factors: tuple[Tensor, Tensor] | None = field(default=None, compare=False)

    def shape(self, of: tuple[int, ...]) -> tuple[int, ...]:
        """What the model sees of a view of a shape; raises ``Mismatch`` where that cannot be."""
        channels, *sides = of
        if self.size is not None and len(of) != 3:
            words = f"these inputs are rows of {channels} numbers, and `resize` is for pictures"
            raise Mismatch(words, "remove it", "resize")
        if len(self.mean) not in (0, 1, channels):
            if len(of) == 3 and channels == 1:
                channels = len(self.mean)
            else:
                what = "columns" if len(of) == 1 else "channels"
                words = f"{len(self.mean)} means and stds for inputs of {channels} {what}"
                raise Mismatch(words, "write one for each, or one for all", "normalization")
        return (channels, *(self.size or sides))

    def __call__(self, x: Tensor) -> Tensor:
        """Inputs (B, …) of the view as the model sees them, in the numbers' own type; reckoned in float32.

        Grey pictures are shown as often as there are means.
        """
        seen = x.float()
        if self.size is not None and seen.shape[2:] != self.size:
            seen = F.interpolate(seen, self.size, mode="bilinear", antialias=True)
        if self.factors is not None:
            scale, shift = self.factors
            seen = torch.addcmul(shift, seen, scale)
        return seen.to(x.dtype)


def lens_for(
    size: tuple[int, int] | None,
    normalization: Normalization | None,
    shape: tuple[int, ...],
    units: Units | None,
    device: torch.device,
) -> Lens | None:
    """The lens of a model that looks at a view of a ``shape`` by its ``units``, or None where it needs none.

    Without units, before a set is loaded, only its form is known.
    """
    if normalization is None:
        return None if size is None else Lens(size)
    mean, std = (np.array(figures, np.float64) for figures in (normalization.mean, normalization.std))
    made = Lens(size, tuple(mean.tolist()), tuple(std.tolist()))
    channels, *_ = made.shape(shape)
    offset, raw_std = (np.zeros(1), np.ones(1)) if units is None else _of_channels(units, shape[0])
    scale, shift = (np.broadcast_to(one, channels) for one in (raw_std / std, (offset - mean) / std))
    if made.shape(shape)[0] == shape[0] and max(abs(scale - 1).max(), abs(shift).max()) <= ROUNDING:
        return made

    def along(figures: np.ndarray) -> Tensor:
        return torch.tensor(figures, dtype=torch.float32, device=device).view(-1, *[1] * (len(shape) - 1))

    return Lens(size, made.mean, made.std, (along(scale), along(shift)))


def _of_channels(units: Units, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """What was taken off each channel or column (K,), and by what the rest was divided; 0 where nothing is seen."""
    offset, scale = (figures.reshape(channels, -1)[:, 0] for figures in (units.offset, units.scale))
    return offset, np.divide(1, scale, out=np.zeros(channels), where=scale != 0)


def look_through(model: Model, made: Lens | None) -> None:
    """Have a model see all its inputs through a lens."""
    if made is not None:
        model.lens = made
        model.register_forward_pre_hook(_through)  # as a function of the module it goes along with copies


def _through(model: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x, *rest = inputs
    return (model.lens(x), *rest)
