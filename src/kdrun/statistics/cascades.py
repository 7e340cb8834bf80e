"""Cascades: who answers what, how sure one has to be for it, and what each choice would cost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from kdrun.statistics.scores import log_probabilities, score

Shares = NDArray[np.floating]

DIGITS = 6
"""Of a confidence; models reckon in float32, which tells no more apart close to 1."""
COMBINATIONS = 2500
"""Of confidences that are tried, of all members together."""
PLACES = 21
"""At which a curve is drawn: quantiles of its members' confidences."""


def confidences(logits: NDArray[np.floating]) -> Shares:
    """The probability (…, N) of the most probable class, by logits (…, N, C)."""
    *before, classes = logits.shape
    surest = log_probabilities(logits.reshape(-1, classes)).max(axis=1)
    return np.exp(surest).reshape(before)


def answering(surest: Shares, demanded: Sequence[float]) -> NDArray[np.int64]:
    """Which of M members (N,) answers: the first that is surer, by (M, N), than is demanded of it; else the last."""
    sure = surest[:-1] > np.asarray(demanded)[:, None]
    return np.concatenate([sure, np.ones_like(surest[:1], bool)]).argmax(axis=0)


def reached(answered: NDArray[np.int64], members: int) -> Shares:
    """Of each member the share of the samples (N,) that come to it."""
    shares: Shares = (answered >= np.arange(members)[:, None]).mean(axis=1)
    return shares


def chosen(
    logits: NDArray[np.floating],
    labels: NDArray[np.int64],
    costs: Sequence[float],
    metric: str,
    tolerance: float,
) -> list[float]:
    """The confidences that make a cascade cheapest whose score is at most a tolerance under the last member's.

    ``logits`` (M, N, C) are what each member says of some samples, ``costs`` (M,) what it costs to ask it. Of what
    costs the same the best is taken. Tried are all combinations of some confidences of each member, between those that
    it has; to pass on everything is one of them.
    """
    surest, predicted = confidences(logits), logits.argmax(axis=2)
    each = int(COMBINATIONS ** (1 / (len(logits) - 1)))
    places = np.arange(len(labels))
    least = score(metric, predicted[-1], labels) - tolerance
    best: tuple[float, float, list[float]] | None = None
    for demanded in product(*[_between(own, each) for own in surest[:-1]]):
        answered = answering(surest, demanded)
        found = score(metric, predicted[answered, places], labels)
        cost = float(reached(answered, len(logits)) @ np.asarray(costs, np.float64))
        if found >= least and (best is None or (cost, -found) < best[:2]):
            best = cost, -found, list(demanded)
    assert best is not None, "what passes everything on scores as its last member does"
    return best[2]


def _between(surest: Shares, most: int) -> list[float]:
    """Up to so many confidences (N,) that lie between those of some samples, from 0, which passes nothing on, to 1."""
    found = np.unique(np.concatenate([[0.0], surest.round(DIGITS), [1.0]]))
    middles = (found[1:] + found[:-1]) / 2
    places = np.unique(np.linspace(0, len(middles) - 1, max(most - 2, 0)).round().astype(int))
    return [0.0, *middles[places].tolist(), 1.0]


def curve(
    logits: NDArray[np.floating], labels: NDArray[np.int64], costs: Sequence[float], metric: str
) -> dict[str, list[float]]:
    """What a cascade scores and costs for a sample, (M, N, C), where one ``confidence`` is demanded of all members.

    It goes from passing nothing on to passing everything on.
    """
    surest, predicted, places = confidences(logits), logits.argmax(axis=2), np.arange(len(labels))
    grid = [0.0, *np.quantile(surest[:-1], np.linspace(0, 1, PLACES)[1:]).tolist()]
    found: dict[str, list[float]] = {"confidence": grid, "score": [], "macs": []}
    for demanded in grid:
        answered = answering(surest, [demanded] * (len(logits) - 1))
        found["score"].append(score(metric, predicted[answered, places], labels))
        found["macs"].append(float(reached(answered, len(logits)) @ np.asarray(costs, np.float64)))
    return found
