"""Returns of evaluation episodes, whose seeds are the same for all runs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from kdrun.statistics.scores import NORMALISED, RETURN

Returns = NDArray[np.float64]

IN = "return in "
"""How the name of a mean return begins that is of one of several environments."""
CLOSE = 1e-9
"""Of the largest return: what differs by less is the same sum of rewards, added up in another order."""


def scores_of_returns(
    returns: Returns,
    lengths: NDArray[np.int64],
    truncated: NDArray[np.bool_],
    environment: NDArray[np.str_] | None = None,
    normalised: Returns | None = None,
) -> dict[str, float]:
    """The mean ``return`` and ``length`` of episodes (E,), and the share that is ``truncated`` by the time limit.

    Where it is told in which ``environment`` (E,) each was, and its ``normalised`` return (E,), the mean of these over
    the environments and the ``return in NAME`` of each take the place of the return, since returns are on scales of
    their own. Raises ``ValueError`` where a return is not finite.
    """
    if not np.isfinite(returns).all():
        raise ValueError("some returns are not finite")
    others = {"length": float(lengths.mean()), "truncated": float(truncated.mean())}
    if environment is None or normalised is None:
        return {RETURN: float(returns.mean())} | others
    rows = {str(name): environment == name for name in dict.fromkeys(environment)}
    combined = float(np.mean([normalised[own].mean() for own in rows.values()]))
    each = {return_in(name): float(returns[own].mean()) for name, own in rows.items()}
    return {NORMALISED: combined} | each | others


def return_in(environment: str) -> str:
    """What the mean return in one of several environments is called among the scores."""
    return f"{IN}{environment}"


def reward_step(runs: Iterable[Returns]) -> float:
    """The smallest difference between two returns that occur in any of the runs' episodes (E,).

    Where rewards are whole numbers that is hardly ever more than one, and where they are not next to nothing. 1 where
    all returns are equal: then no score differs, and any step will do.
    """
    found = np.unique(np.concatenate([*runs]))
    gaps = np.diff(found)
    gaps = gaps[gaps > CLOSE * np.abs(found).max(initial=0)]
    return float(gaps.min()) if len(gaps) else 1.0
