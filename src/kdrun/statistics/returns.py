"""Returns of evaluation episodes, whose seeds are the same for all runs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from kdrun.statistics.scores import RETURN

Returns = NDArray[np.float64]

CLOSE = 1e-9
"""Of the largest return: what differs by less is the same sum of rewards, added up in another order."""


def scores_of_returns(
    returns: Returns, lengths: NDArray[np.int64], truncated: NDArray[np.bool_]
) -> dict[str, float]:
    """The mean ``return`` and ``length`` of episodes (E,), and the share that is ``truncated`` by the time limit.

    Raises ``ValueError`` where a return is not finite.
    """
    if not np.isfinite(returns).all():
        raise ValueError("some returns are not finite")
    return {
        RETURN: float(returns.mean()),
        "length": float(lengths.mean()),
        "truncated": float(truncated.mean()),
    }


def reward_step(runs: Iterable[Returns]) -> float:
    """The smallest difference between two returns that occur in any of the runs' episodes (E,).

    Where rewards are whole numbers that is hardly ever more than one, and where they are not next to nothing. 1 where
    all returns are equal: then no score differs, and any step will do.
    """
    found = np.unique(np.concatenate([*runs]))
    gaps = np.diff(found)
    gaps = gaps[gaps > CLOSE * np.abs(found).max(initial=0)]
    return float(gaps.min()) if len(gaps) else 1.0
