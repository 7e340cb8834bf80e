"""Summaries over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return math.fsum(values) / len(values) if values else None


def std(values: Sequence[float]) -> float | None:
    """The standard deviation with n - 1; None under two values."""
    if len(values) < 2:
        return None
    middle = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def gain(by_seed: dict[int, float], control: dict[int, float]) -> float | None:
    """Mean difference to the control over the seeds that both have; None where they share none."""
    shared = sorted(by_seed.keys() & control.keys())
    return mean([by_seed[seed] - control[seed] for seed in shared])


def gap_closed(gain: float | None, control: float | None, teacher: float | None) -> float | None:
    """Share of the gap between control and teacher that a gain closes; None where there is no gap.

    Over 1 where the student passes its teacher, negative where it falls below its control.
    """
    if gain is None or control is None or teacher is None or teacher <= control:
        return None
    return gain / (teacher - control)
