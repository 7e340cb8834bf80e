"""Factors that change with the epochs: of the learning rate, and of a term's weight.

``factor(epoch, epochs)`` is the factor at an epoch, counted from 0 and perhaps a fraction, of so many.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from kdrun.schema import Schema, kind_alone


class Constant(Schema):
    """It stays as it is."""

    kind: Literal["constant"]

    def factor(self, epoch: float, epochs: int) -> float:
        """Always 1."""
        return 1.0


class _Falling(Schema):
    """From the full value down to ``final`` of it."""

    final: float = Field(default=0.0, ge=0, le=1)
    """the share that is left at the end"""
    start: float = Field(default=0.0, ge=0, lt=1)
    """the share of the epochs before it begins to fall"""

    def _way(self, epoch: float, epochs: int) -> float:
        """How much of the way down is behind, in [0, 1]."""
        return min(max((epoch / epochs - self.start) / (1 - self.start), 0.0), 1.0)


class Linear(_Falling):
    """A straight line from the full value down to ``final`` of it."""

    kind: Literal["linear"]

    def factor(self, epoch: float, epochs: int) -> float:
        """From 1 to ``final``."""
        return self.final + (1 - self.final) * (1 - self._way(epoch, epochs))


class Cosine(_Falling):
    """Half a cosine from the full value down to ``final`` of it."""

    kind: Literal["cosine"]

    def factor(self, epoch: float, epochs: int) -> float:
        """From 1 to ``final``."""
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * self._way(epoch, epochs)))


class Step(Schema):
    """It is multiplied by ``gamma`` after each of the ``milestones``."""

    kind: Literal["step"]
    milestones: list[Annotated[int, Field(ge=1)]]
    """epochs after which it falls"""
    gamma: float = Field(default=0.1, gt=0, le=1)
    """the factor"""

    def factor(self, epoch: float, epochs: int) -> float:
        """``gamma`` to the power of the milestones that are past."""
        return self.gamma ** sum(epoch >= milestone for milestone in self.milestones)


class WarmUp(Schema):
    """It rises epoch by epoch to the full value: min(e/n, 1) in epoch e, counted from 1.

    Exactly one of ``epochs`` and ``share`` says how long.
    """

    kind: Literal["warmup"]
    epochs: int | None = Field(default=None, ge=1)
    """n: the epoch from which on it is full"""
    share: float | None = Field(default=None, gt=0, le=1)
    """n as a share of all epochs"""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.epochs is None) == (self.share is None):
            raise ValueError("say either 'epochs' or 'share'")
        return self

    def factor(self, epoch: float, epochs: int) -> float:
        """Above 0 from the first epoch on."""
        rising = self.epochs if self.epochs is not None else (self.share or 1.0) * epochs
        return min((math.floor(epoch) + 1) / rising, 1.0)


AnySchedule = Annotated[
    Constant | Linear | Cosine | Step, Field(discriminator="kind"), BeforeValidator(kind_alone)
]
"""Of a learning rate, whose rise has a key of its own."""
AnyWeightSchedule = Annotated[
    Constant | WarmUp | Linear | Cosine | Step, Field(discriminator="kind"), BeforeValidator(kind_alone)
]
