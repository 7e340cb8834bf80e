"""Resamples of seeds and of what runs are scored on, drawn once for all runs of a comparison."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdrun.statistics.inference import LEVEL, Difference, Interval
from kdrun.statistics.returns import Returns
from kdrun.statistics.scores import METRICS, Counts, Labels, accuracy

RESAMPLES = 2000
BLOCKS = 20
"""Of resamples that are counted at once: so many that they take little memory."""
ROUNDING = 1e-12
"""By which equal numbers may differ that were added up in another order; of numbers over 1, that share of them."""


class Resampling(ABC):
    """Resamples of N cases on which all runs are scored, and of the seeds of these runs.

    The same cases are drawn for all runs, and the same seeds for both runs of a pair, so that what they have in common
    cancels out. Of each run are given its ``outcomes`` (N,), of which its score is made.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        self._times = np.empty((RESAMPLES, size), np.uint8)
        for times in self._times:
            times[:] = np.bincount(draw.integers(size, size=size), minlength=size)
        self._seed = seed
        self._scores: dict[bytes, NDArray[np.float64]] = {}

    def scores(self, outcomes: NDArray[Any]) -> NDArray[np.float64]:
        """The score (R,) of one run on every resample of the cases; reckoned once."""
        known = outcomes.tobytes()
        if known not in self._scores:
            self._scores[known] = self._reckoned(outcomes)
        return self._scores[known]

    @abstractmethod
    def _reckoned(self, outcomes: NDArray[Any]) -> NDArray[np.float64]: ...

    def interval(
        self, first: Sequence[NDArray[np.float64]], second: Sequence[NDArray[np.float64]]
    ) -> Interval:
        """The percentile interval of two methods' mean difference, from each run's ``scores``, paired by seed."""
        return self.of_mean([own - other for own, other in zip(first, second, strict=True)])

    def of_mean(self, runs: Sequence[NDArray[np.float64]]) -> Interval:
        """The percentile interval of the mean over seeds, from each run's ``scores``."""
        found, count = np.stack(runs, axis=1), len(runs)
        seeds = np.random.default_rng((self._seed, count)).integers(count, size=(RESAMPLES, count))
        means = np.take_along_axis(found, seeds, axis=1).mean(axis=1)
        low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
        return float(low), float(high)

    def difference(self, first: Sequence[NDArray[Any]], second: Sequence[NDArray[Any]]) -> Difference:
        """Two methods' mean difference, by their outcomes, paired by seed: the noise of the cases, not of the seeds.

        Its interval over resamples of the cases, and its p-value: that of swapping all outcomes of each case by chance,
        which for the accuracy of single runs is McNemar's. The interval does not come from it: close to the level one
        may say what the other does not.
        """
        swapped = self._swapped(first, second)
        found = float(swapped[0])
        close = ROUNDING * max(1.0, float(np.abs(swapped).max()))
        as_far = int((np.abs(swapped[1:]) >= abs(found) - close).sum())
        pairs = zip(first, second, strict=True)
        means = np.mean([self.scores(own) - self.scores(other) for own, other in pairs], axis=0)
        low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
        return Difference(found, (float(low), float(high)), (1 + as_far) / (1 + RESAMPLES), None, 1)

    @abstractmethod
    def _swapped(self, first: Sequence[NDArray[Any]], second: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        """The mean difference as it is, and where chance has swapped outcomes (1 + R,)."""


class Resamples(Resampling):
    """Resamples of one test set, scored by a metric of the classes that its samples are taken for."""

    def __init__(self, labels: Labels, metric: str, seed: int = 0) -> None:
        super().__init__(len(labels), seed)
        self._labels, self._metric = labels, METRICS[metric]

    def _reckoned(self, predicted: Labels) -> NDArray[np.float64]:
        right = predicted == self._labels
        if self._metric is accuracy:  # the same, several times as fast
            return self._times[:, right].sum(axis=1, dtype=np.int64) / len(self._labels)
        classes = int(max(predicted.max(), self._labels.max())) + 1
        one = np.eye(classes, dtype=np.float32)
        is_of, taken_for = one[self._labels], one[predicted]
        parts = np.hstack([is_of, is_of * right[:, None], taken_for])
        counts = np.vstack(
            [block.astype(np.float32) @ parts for block in np.array_split(self._times, BLOCKS)]
        )
        return self._metric(Counts(*np.hsplit(counts.astype(np.float64), 3)))

    def _swapped(self, first: Sequence[Labels], second: Sequence[Labels]) -> NDArray[np.float64]:
        """A swap moves counts from one run to the other, and none where both say the same."""
        differs = np.any([own != other for own, other in zip(first, second, strict=True)], axis=0)
        swaps = np.random.default_rng((self._seed, 1)).integers(
            2, size=(1 + RESAMPLES, int(differs.sum())), dtype=np.uint8
        )
        swaps[0] = 0
        found = [self._of_pair(own, other, differs, swaps) for own, other in zip(first, second, strict=True)]
        return np.asarray(np.mean(found, axis=0))

    def _of_pair(
        self, first: Labels, second: Labels, differs: NDArray[np.bool_], swaps: NDArray[np.uint8]
    ) -> NDArray[np.float64]:
        """The difference of two runs (R,), with predictions of the samples that may differ swapped (R, M)."""
        classes = int(max(first.max(), second.max(), self._labels.max())) + 1
        ours, theirs, labels = first[differs], second[differs], self._labels[differs]
        rows, one = np.arange(len(labels)), np.eye(classes, dtype=np.float32)
        right = np.zeros((len(labels), classes), np.float32)
        right[rows, labels] = (theirs == labels).astype(np.float32) - (ours == labels)
        moved = swaps.astype(np.float32) @ np.hstack([right, one[theirs] - one[ours]])
        found, taken = np.hsplit(moved.astype(np.float64), 2)
        labelled = np.bincount(self._labels, minlength=classes).astype(np.float64)
        scores = []
        for predicted, sign in ((first, 1), (second, -1)):
            own = np.bincount(self._labels[predicted == self._labels], minlength=classes)
            said = np.bincount(predicted, minlength=classes)
            scores.append(
                self._metric(
                    Counts(np.broadcast_to(labelled, found.shape), own + sign * found, said + sign * taken)
                )
            )
        return np.asarray(scores[0] - scores[1])


class ResampledEpisodes(Resampling):
    """Resamples of evaluation episodes, scored by their mean return.

    A p-value is that of a sign-flip test: it takes for granted that two equal agents could have had each other's return
    in any episode, and nothing of how returns are distributed. Episodes in which they are equal say nothing.

    Source: Fisher, "The Design of Experiments", 1935, section 21.
    """

    def _reckoned(self, returns: Returns) -> NDArray[np.float64]:
        return np.asarray(self._times @ returns / len(returns))

    def _swapped(self, first: Sequence[Returns], second: Sequence[Returns]) -> NDArray[np.float64]:
        differences = np.mean([own - other for own, other in zip(first, second, strict=True)], axis=0)
        size = 1 + RESAMPLES, len(differences)
        signs = 1 - 2 * np.random.default_rng((self._seed, 1)).integers(2, size=size, dtype=np.int8)
        signs[0] = 1
        return np.asarray(signs @ differences / len(differences))
