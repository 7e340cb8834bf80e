"""Resamples of seeds and test samples together, drawn once for all runs of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdrun.statistics.inference import LEVEL, Difference, Interval
from kdrun.statistics.scores import METRICS, Labels, accuracy, counted

RESAMPLES = 2000


class Resamples:
    """Resamples of one test set and of the seeds of its runs.

    The same samples are drawn for all runs, and the same seeds for both runs of a pair, so that what they have in
    common cancels out.
    """

    def __init__(self, labels: Labels, metric: str, seed: int = 0) -> None:
        self._labels, self._metric = labels, METRICS[metric]
        draw, size = np.random.default_rng(seed), len(labels)
        self._times = np.empty((RESAMPLES, size), np.uint8)
        for times in self._times:
            times[:] = np.bincount(draw.integers(size, size=size), minlength=size)
        self._seed = seed

    def scores(self, predicted: Labels) -> NDArray[np.float64]:
        """The metric of one run's predictions (N,) on every resample of the test set."""
        if self._metric is accuracy:  # the same, ten times as fast
            right = self._times[:, predicted == self._labels]
            return right.sum(axis=1, dtype=np.int64) / len(self._labels)
        return np.array([self._score(predicted, times) for times in self._times])

    def interval(
        self, first: Sequence[NDArray[np.float64]], second: Sequence[NDArray[np.float64]]
    ) -> Interval:
        """The percentile interval of two methods' mean difference, from each run's ``scores``, paired by seed."""
        differences = np.stack(first, axis=1) - np.stack(second, axis=1)
        count = differences.shape[1]
        seeds = np.random.default_rng((self._seed, count)).integers(count, size=(RESAMPLES, count))
        means = np.take_along_axis(differences, seeds, axis=1).mean(axis=1)
        low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
        return float(low), float(high)

    def difference(self, first: Labels, second: Labels) -> Difference:
        """Two single runs' difference in any metric: its interval over resamples of the test set, and its p-value.

        The p-value is that of swapping the two predictions of each sample by chance; for accuracy it is McNemar's.
        """
        found = self._score(first) - self._score(second)
        draw, swapped = np.random.default_rng((self._seed, 1)), []
        for _ in range(RESAMPLES):
            swap = draw.random(len(first)) < 0.5
            swapped.append(
                self._score(np.where(swap, second, first)) - self._score(np.where(swap, first, second))
            )
        as_far = int((np.abs(swapped) >= abs(found) - 1e-12).sum())
        interval = self.interval([self.scores(first)], [self.scores(second)])
        return Difference(found, interval, (1 + as_far) / (1 + RESAMPLES), None, 1)

    def _score(self, predicted: Labels, times: NDArray[np.uint8] | None = None) -> float:
        return self._metric(counted(predicted, self._labels, times))
