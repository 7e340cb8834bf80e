"""How the values of a metric are called and shown; whatever tells one asks here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kdrun.statistics.scores import NORMALISED, RETURN


@dataclass(frozen=True)
class Scale:
    """A metric as it is told: shares in percent and their differences in points, all else as plain numbers.

    ``metric`` is what a sentence calls it, ``score`` what a column does; ``cases`` are what it is a mean over, and
    ``where`` is where it was measured.
    """

    metric: str
    score: str
    cases: str
    where: str
    share: bool

    @property
    def factor(self) -> int:
        """By what values are multiplied to be shown."""
        return 100 if self.share else 1

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the most that a value can be."""
        return (0.0, 1.0) if self.share else (-math.inf, math.inf)

    @property
    def unit(self) -> str:
        """What stands behind the name of an axis."""
        return " in %" if self.share else ""

    @property
    def column(self) -> str:
        """The heading of its values in a table."""
        return f"{self.score} %" if self.share else self.score

    @property
    def points(self) -> str:
        """What stands behind a difference."""
        return " points" if self.share else ""

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


OF_RETURNS = Scale("mean return", "return", "evaluation episodes", "on the evaluation episodes", share=False)


OF_NORMALISED = replace(OF_RETURNS, metric="mean normalised return", score="normalised return")
OF_EPISODES = {RETURN: OF_RETURNS, NORMALISED: OF_NORMALISED}
"""The scales of what agents are scored by."""


def scale_of(metric: str) -> Scale:
    """How a metric is told."""
    if metric in OF_EPISODES:
        return OF_EPISODES[metric]
    return Scale(metric, "score", "test samples", "on the test set", share=True)


def shown_zero(value: float, digits: int) -> float:
    """A number as it is to be shown with so many digits: nothing is -0.00."""
    return round(value, digits) + 0.0
