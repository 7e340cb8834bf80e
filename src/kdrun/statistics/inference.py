"""What paired differences say: intervals, p-values, verdicts, and what a comparison could have found at all.

Everything is two-sided and at the level of 5 %. Differences are paired by seed: both runs began with the same weights
and saw the same samples in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from kdrun.statistics.summary import mean, std

LEVEL = 0.05
"""The share of comparisons without any difference in which one is claimed."""
POWER = 0.8
"""The share of comparisons in which a difference is to be found that is there."""
MOST_SEEDS = 1000
"""More are not counted: nobody trains them."""

Verdict = Literal["better", "worse", "not distinguishable"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """A mean difference with its interval and p-value.

    ``spread`` is the standard deviation of the differences over seeds; with one seed there is none, and interval and
    p-value cover the noise of the test samples, or episodes, only.
    """

    mean: float
    interval: Interval
    p_value: float
    spread: float | None
    seeds: int


def over_seeds(differences: Sequence[float], step: float) -> Difference:
    """The paired t-test of at least two differences of scores, which a test sample or episode can change by ``step``.

    Scores come in steps, and rounding to them alone spreads a difference by step/√6: the spread is taken for no less,
    or three seeds that happen to differ by the same few samples would prove anything.
    """
    count, middle, spread = len(differences), mean(differences), std(differences)
    assert middle is not None and spread is not None, "a t-test needs two seeds"
    spread = max(spread, rounding(step))
    error = spread / math.sqrt(count)
    reach = _t_bound(LEVEL, count - 1) * error
    p_value = 2 * float(special.stdtr(count - 1, -abs(middle) / error))
    return Difference(middle, (middle - reach, middle + reach), p_value, spread, count)


def over_both(seeds: Difference, samples: Difference) -> Difference:
    """What is left of one difference where the noise of seeds and that of test samples both have to be exceeded.

    The larger p-value, and the wider interval.
    """
    (low, high), (other_low, other_high) = seeds.interval, samples.interval
    interval = min(low, other_low), max(high, other_high)
    return replace(seeds, interval=interval, p_value=max(seeds.p_value, samples.p_value))


def of_mean(values: Sequence[float]) -> Interval | None:
    """The interval of a mean over seeds, by Student's t; None under two values."""
    spread = std(values)
    if spread is None:
        return None
    middle, reach = mean(values), _t_bound(LEVEL, len(values) - 1) * spread / math.sqrt(len(values))
    assert middle is not None
    return middle - reach, middle + reach


def rounding(step: float) -> float:
    """The standard deviation that the difference of two scores has from rounding alone."""
    return step / math.sqrt(6)


def over_samples(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Difference:
    """Exact McNemar's test of two single runs, from which samples each has right (N,), with Newcombe's interval.

    The interval allows for the noise in how many samples differ at all, which the test takes as given: close to the
    level one may say what the other does not.

    Source: McNemar, "Note on the Sampling Error of the Difference Between Correlated Proportions or Percentages",
    1947; Newcombe, "Improved Confidence Intervals for the Difference Between Binomial Proportions Based on Paired
    Data", 1998, method 10.
    """
    samples = len(first)
    ours, theirs = int((first & ~second).sum()), int((second & ~first).sum())
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    p_value = 1.0
    if ours + theirs:
        p_value = min(1.0, 2 * float(special.bdtr(min(ours, theirs), ours + theirs, 0.5)))
    shares = (both + ours) / samples, (both + theirs) / samples
    (low, high), (low_other, high_other) = (_wilson(share, samples) for share in shares)
    margins = math.sqrt((both + ours) * (theirs + neither) * (both + theirs) * (ours + neither))
    shared = float(both * neither - ours * theirs)
    if shared > 0:
        shared = max(shared - samples / 2, 0.0)  # Newcombe's correction for continuity
    alike = shared / margins if margins else 0.0

    def reach(own: float, other: float) -> float:
        return math.sqrt(max(own**2 - 2 * alike * own * other + other**2, 0.0))

    middle = (ours - theirs) / samples
    below = reach(shares[0] - low, high_other - shares[1])
    above = reach(high - shares[0], shares[1] - low_other)
    return Difference(middle, (middle - below, middle + above), p_value, None, 1)


def _wilson(share: float, samples: int) -> Interval:
    """Wilson's interval of a share of so many samples."""
    z = float(special.ndtri(1 - LEVEL / 2))
    middle, scale = share + z**2 / (2 * samples), 1 + z**2 / samples
    reach = z * math.sqrt(share * (1 - share) / samples + (z / (2 * samples)) ** 2)
    return (middle - reach) / scale, (middle + reach) / scale


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, adjusted so that all together raise a false alarm as often as one may.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", 1979.
    """
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = least
    return adjusted


def verdict(difference: float, p_value: float) -> Verdict:
    """What a difference comes to, by its adjusted p-value."""
    if p_value >= LEVEL:
        return "not distinguishable"
    return "better" if difference > 0 else "worse"


def power(size: float, seeds: int, tests: int = 1) -> float:
    """How often a difference of ``size`` spreads is found with so many seeds, if it has to stand out of ``tests``."""
    freedom, bound = seeds - 1, _t_bound(LEVEL / tests, seeds - 1)
    shift = abs(size) * math.sqrt(seeds)
    below, far_below = np.nan_to_num([special.nctdtr(freedom, shift, end) for end in (bound, -bound)])
    return 1 - float(below - far_below)  # scipy gives NaN where they are too small to be reckoned


def seeds_needed(difference: float, spread: float, tests: int = 1) -> int | None:
    """The seeds that find a difference of this size with a power of 80 %; None for more than a thousand."""
    if power(difference / spread, MOST_SEEDS, tests) < POWER:
        return None
    return 1 + int(
        _least(lambda seeds: power(difference / spread, int(seeds) + 1, tests), 1, MOST_SEEDS - 1, 1)
    )


def detectable(spread: float, seeds: int, tests: int = 1) -> float:
    """The smallest difference that so many seeds find with a power of 80 %."""
    most = 1.0
    while power(most, seeds, tests) < POWER:
        most *= 2
    return spread * _least(lambda size: power(size, seeds, tests), 0, most, 1e-9 * most)


def _least(found: Callable[[float], float], low: float, high: float, close: float) -> float:
    """The least argument in (low, high] at which the power suffices, up to ``close``; whole where that is 1."""
    if found(low) >= POWER:
        return low
    while high - low > close:
        middle = (low + high) / 2 if close < 1 else (low + high) // 2
        low, high = (low, middle) if found(middle) >= POWER else (middle, high)
    return high


def share_of_gap(gains: Sequence[float], gaps: Sequence[float], step: float) -> Interval | None:
    """Fieller's interval of the mean gain over the mean gap, paired by seed; None where no gap is clear.

    Needs two seeds. Both spreads are taken for no less than that of rounding, as in ``over_seeds``.

    Source: Fieller, "Some Problems in Interval Estimation", 1954.
    """
    assert len(gains) == len(gaps) > 1
    count = len(gains)
    gain, gap = float(np.mean(gains)), float(np.mean(gaps))
    (gain_variance, shared), (_, gap_variance) = np.cov(gains, gaps) / count
    least = rounding(step) ** 2 / count
    gain_variance, gap_variance = max(gain_variance, least), max(gap_variance, least)
    bound = _t_bound(LEVEL, count - 1) ** 2
    clear = gap**2 - bound * gap_variance
    if gap <= 0 or clear <= 0:
        return None
    middle = gain * gap - bound * shared
    root = math.sqrt(max(middle**2 - clear * (gain**2 - bound * gain_variance), 0.0))
    return (middle - root) / clear, (middle + root) / clear


def _t_bound(level: float, freedom: int) -> float:
    """What |t| exceeds with this probability."""
    return float(special.stdtrit(freedom, 1 - level / 2))
