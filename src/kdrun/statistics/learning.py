"""How fast students learn that act by themselves: curves over seeds, and the steps until a return is reached."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdrun.statistics.inference import LEVEL, Interval
from kdrun.statistics.resampling import BLOCKS, RESAMPLES

Values = NDArray[np.float64]
Steps = Mapping[int, float]
"""By seed the step at which something was reached; infinite where it was not, as long as anybody looked."""

CUT = 0.25
"""What an interquartile mean leaves out at each end."""
FULL = round(1 / CUT)
"""The fewest seeds of which it leaves out any."""


@dataclass(frozen=True)
class Curve:
    """The interquartile mean over seeds at each of E places, between the ends of its interval, (E,) each."""

    middle: Values
    low: Values
    high: Values


@dataclass(frozen=True)
class Saving:
    """How many steps fewer something took than its control, in the mean over so many seeds, with the interval."""

    steps: float
    interval: Interval | None
    seeds: int


def interquartile_mean(values: Values) -> Values:
    """The mean over the first axis (S, …) without the least and the largest quarter, rounded down: of 3 it is the mean.

    Source: Agarwal, Schwarzer, Castro, Courville, Bellemare, "Deep Reinforcement Learning at the Edge of the
    Statistical Precipice", 2021; as `scipy.stats.trim_mean` with 0.25.
    """
    out = int(CUT * len(values))
    return np.asarray(np.sort(values, axis=0)[out : len(values) - out].mean(axis=0))


def curve(values: Values, seed: int = 0) -> Curve:
    """The interquartile mean of values (S, E) at each place, with its percentile interval over resampled seeds.

    A resample has whole curves. All are of one task; of several, each would be a stratum of its own. With few seeds
    the interval is too narrow, and with one it is none: its ends are the mean.
    """
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    parts = [interquartile_mean(values[rows].swapaxes(0, 1)) for rows in np.array_split(drawn, BLOCKS)]
    low, high = np.quantile(np.concatenate(parts), [LEVEL / 2, 1 - LEVEL / 2], axis=0)
    return Curve(interquartile_mean(values), low, high)


def first_at(values: Values, steps: Values, target: float) -> float:
    """The first of the steps (E,) at which a value (E,) is the target or more; infinite where none is."""
    reached = np.flatnonzero(values >= target)
    return float(steps[reached[0]]) if len(reached) else math.inf


def restricted_mean(steps: Sequence[float], horizon: float) -> float:
    """The mean of the steps until something is reached, each taken for no more than the horizon.

    Of a seed that does not reach it all that is known is that it takes longer: the mean itself is not known then, and
    without these seeds it would be too small. The restricted one is known of all.

    Source: Royston, Parmar, "Restricted Mean Survival Time: An Alternative to the Hazard Ratio for the Design and
    Analysis of Randomized Trials with a Time-to-Event Outcome", 2013.
    """
    return float(np.minimum(steps, horizon).mean())


def median(steps: Sequence[float]) -> float | None:
    """The median of the steps; None where it is not known, for too few seeds reached it."""
    found = float(np.median(steps))
    return found if math.isfinite(found) else None


def saving(own: Steps, control: Steps, horizon: float, seed: int = 0) -> Saving | None:
    """How many steps fewer the own seeds take than their control's, paired by seed: the difference of restricted means.

    With the percentile interval over resampled pairs, None for one pair. None where no seed is shared, or where none
    of either reaches it by the horizon: nothing is known then. Where seeds of the control do not reach it, it is what
    is saved at least, and where own ones do not, what is saved at most.
    """
    shared = sorted(own.keys() & control.keys())
    ours, theirs = (np.array([of[one] for one in shared]) for of in (own, control))
    if not len(shared) or not (np.minimum(ours, theirs) <= horizon).any():
        return None
    differences = np.minimum(theirs, horizon) - np.minimum(ours, horizon)
    if len(shared) == 1:
        return Saving(float(differences.mean()), None, 1)
    drawn = np.random.default_rng(seed).integers(len(shared), size=(RESAMPLES, len(shared)))
    low, high = np.quantile(differences[drawn].mean(axis=1), [LEVEL / 2, 1 - LEVEL / 2])
    return Saving(float(differences.mean()), (float(low), float(high)), len(shared))
