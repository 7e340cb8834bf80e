"""How the values of a metric are called and shown; whatever tells one asks here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kdrun.statistics.scores import NORMALISED, RETURN


@dataclass(frozen=True)
class Scale:
    """A metric as it is told: in ``percent``, with differences in points, or as plain numbers.

    ``metric`` is what a sentence calls it, ``score`` what a column does; it is of those who ``acted`` in episodes, or
    else of samples.
    """

    metric: str
    score: str
    percent: bool = True
    acted: bool = False

    @property
    def cases(self) -> str:
        """What it is a mean over."""
        return "evaluation episodes" if self.acted else "test samples"

    @property
    def where(self) -> str:
        """Where it was measured."""
        return "on the evaluation episodes" if self.acted else "on the test set"

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the most that a value can be."""
        return (-math.inf, math.inf) if self.acted else (0.0, 1.0)

    @property
    def factor(self) -> int:
        """By what values are multiplied to be shown."""
        return 100 if self.percent else 1

    @property
    def unit(self) -> str:
        """What stands behind the name of an axis."""
        return " in %" if self.percent else ""

    @property
    def column(self) -> str:
        """The heading of its values in a table."""
        return f"{self.score} %" if self.percent else self.score

    @property
    def points(self) -> str:
        """What stands behind a difference."""
        return " points" if self.percent else ""

    @property
    def both_noises(self) -> str:
        """What an interval of a gain covers where seeds alone would be too few."""
        return f"seeds and {self.cases}"

    def shown(self, value: float, sign: str = "", digits: int = 2) -> str:
        """A value; with the sign '+' a difference."""
        return f"{shown_zero(self.factor * value, digits):{sign}.{digits}f}"

    def difference(self, value: float, sign: str = "+") -> str:
        """A difference, with what it is measured in."""
        return self.shown(value, sign) + self.points

    def interval(self, ends: Sequence[float], sign: str = "") -> str:
        """An interval of values, or of differences with the sign '+'."""
        return f"[{', '.join(self.shown(end, sign) for end in ends)}]"


OF_RETURNS = Scale("mean return", "return", percent=False, acted=True)
OF_NORMALISED = Scale("mean normalised return", "normalised return", acted=True)
OF_EPISODES = {RETURN: OF_RETURNS, NORMALISED: OF_NORMALISED}
"""The scales of what agents are scored by."""


def scale_of(metric: str) -> Scale:
    """How a metric is told."""
    if metric in OF_EPISODES:
        return OF_EPISODES[metric]
    return Scale(metric, "score")


def shown_zero(value: float, digits: int) -> float:
    """A number as it is to be shown with so many digits: nothing is -0.00."""
    return round(value, digits) + 0.0
