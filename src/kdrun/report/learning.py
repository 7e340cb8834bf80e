"""How fast students learn that act by themselves: what is stored of it as figures of rows, sentences and a curve."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kdrun.report.figures import Look, Margins, Plot, beside, legend, new, short
from kdrun.statistics import learning

Log = Sequence[Mapping[str, Any]]
"""The lines of a training, one an epoch."""


class Track(NamedTuple):
    """What a student reached in its training: the return in the validation episodes (E,) after so many steps (E,)."""

    steps: np.ndarray
    returns: np.ndarray

    def reaches(self, target: float) -> float:
        """After how many steps it first reaches a return; infinite where it does not."""
        return learning.first_at(self.returns, self.steps, target)


def track(log: Log, metric: str) -> Track | None:
    """What a log says of that; None where the student did not act by itself, or was not validated."""
    steps = [line.get("environment_steps") for line in log]
    found = [(line["validation"] or {}).get(metric) for line in log]
    if not log or None in steps or None in found:
        return None
    return Track(np.array(steps, float), np.array(found, float))


def tracks(logs: Mapping[int, Log], metric: str) -> dict[int, Track]:
    """Those of the seeds that have one."""
    return {seed: one for seed, log in logs.items() if (one := track(log, metric)) is not None}


def steps_to_target(
    target: float, own: Mapping[int, Track], control: Mapping[int, Track] | None
) -> dict[str, Any] | None:
    """When the seeds of a method reach a return, and what they save over those of its control; None of no seed.

    ``reached`` of ``seeds`` do by the ``horizon``, the last step at which all were validated. ``mean`` is restricted to
    that; ``median`` is null where too few reach it. ``saved`` is positive where the method is faster.
    """
    if not own:
        return None
    horizon = _horizon(own.values())
    steps = {seed: one.reaches(target) for seed, one in own.items()}
    saved = None
    if control:
        both = min(horizon, _horizon(control.values()))
        saved = learning.saving(steps, {seed: one.reaches(target) for seed, one in control.items()}, both)
    return {
        "target": target,
        "reached": sum(map(math.isfinite, steps.values())),
        "seeds": len(steps),
        "horizon": horizon,
        "mean": learning.restricted_mean([*steps.values()], horizon),
        "median": learning.median([*steps.values()]),
        "saved": saved and saved.steps,
        "saved_interval": list(saved.interval) if saved and saved.interval else None,
        "saved_seeds": saved.seeds if saved else 0,
    }


def _horizon(found: Iterable[Track]) -> float:
    return float(min(one.steps[-1] for one in found))


def steps_told(method: str, found: Mapping[str, Any]) -> str:
    """What a method's steps to the target come to, in words."""
    told = f"{method} reached {found['target']:g} in {found['reached']} of {found['seeds']} seeds"
    if found["reached"] == found["seeds"]:
        told += f", after {found['mean']:,.0f} steps in the mean"
    elif found["reached"]:
        told += (
            f", after {found['mean']:,.0f} steps in the mean, the others taken for {found['horizon']:,.0f}"
        )
    if found["saved"] is None:
        return told
    few = "fewer" if found["saved"] >= 0 else "more"
    told += f": {abs(found['saved']):,.0f} {few} than alone"
    if found["saved_interval"] is None:
        return told
    low, high = found["saved_interval"]
    return f"{told}, 95% interval of what is saved {low:,.0f} to {high:,.0f}"


def curves(
    title: str,
    found: Mapping[str, Mapping[int, Track]],
    target: float | None,
    name: str,
    look: Mapping[str, Look],
) -> Iterator[Plot]:
    """Of each method the interquartile mean over seeds of the return, by steps of the environment, in its interval."""
    found = {method: own for method, own in found.items() if own}
    if not any(len(one.steps) > 1 for own in found.values() for one in own.values()):
        return  # a single epoch is no curve
    names = [short(method, 28) for method in found]
    figure, [axes] = new(4.4, max(3.2, 0.16 * len(found)), Margins(right=beside(names)))
    for method, own in found.items():
        last = min(len(one.steps) for one in own.values())
        steps = next(iter(own.values())).steps[:last]
        drawn = learning.curve(np.array([one.returns[:last] for one in own.values()]))
        axes.plot(steps, drawn.middle, look[method].line, color=look[method].colour, lw=1.4)
        axes.fill_between(steps, drawn.low, drawn.high, color=look[method].colour, alpha=0.18, lw=0)
    lines = [*axes.lines]
    if target is not None:
        axes.axhline(target, color="#444444", lw=0.8, ls=":", zorder=1.9)  # above the grid
    axes.set_xlabel("steps of the environment")
    axes.set_ylabel("return in the validation episodes")
    legend(figure, lines, names)
    seeds = min(len(own) for own in found.values())
    few = f"; of {seeds} seeds that is the mean" * (seeds < learning.FULL)
    yield Plot(
        name,
        f"{title}Return of the student's most probable actions in the validation episodes, by the steps that it took "
        f"in the environment, its teacher's not counted: the interquartile mean over seeds{few}, in its 95% interval "
        f"over resampled seeds, too narrow where they are few{'; dotted the target' * (target is not None)}.",
        figure,
    )
