"""What can be tuned of a method: the values that are tried, and putting them in place."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from kdrun import registry
from kdrun.config.mixes import Method, applied, by_label, published_methods
from kdrun.config.parts import ControlConfig, MethodConfig, Range, Space
from kdrun.config.translation import translated
from kdrun.controls import MIXES
from kdrun.errors import ConfigError, Problem
from kdrun.optimization import Training

LEARNING_RATE, JITTER = "training.optimizer.lr", "training.queries.jitter"
FACTOR, WEIGHT_FACTOR = 4.0, 10.0
"""How far around its own value a learning rate or a smoothing, and a weight, are tried where no range is given."""
MOST_SMOOTHING = 0.95
EXAMPLE = f"write it as in {LEARNING_RATE}"

Entry = MethodConfig | ControlConfig


def spaces_of(entry: Entry, method: Method, training: Training, fitted: bool) -> dict[str, Space]:
    """What is tuned of a method, written out as ``method`` and trained by ``training``: what it says itself.

    Where it says nothing: the learning rate, unless the model is ``fitted`` at once, the smoothing of labels, the
    weight of each term that looks at a teacher beside other terms, the noise of queries, and what the authors of the
    mix that it uses tried.
    """
    if entry.tune is not None:
        return dict(entry.tune)
    spaces: dict[str, Space] = {} if fitted else {LEARNING_RATE: _around(training.optimizer.lr, FACTOR)}
    taught = any(registry.LOSSES[loss.kind].needs_teacher for loss in method.losses)
    if training.queries is not None and training.queries.jitter and taught:
        spaces[JITTER] = _around(training.queries.jitter, FACTOR)
    published = published_methods().get(_mix(entry) or "")
    labels = [loss.label for loss in method.losses]
    if published is not None:  # `set` calls the terms as they were published
        labels = [*by_label(published.losses)]
    for label, loss in zip(labels, method.losses, strict=True):
        if smoothing := getattr(loss, "label_smoothing", None):
            spaces[f"{label}.label_smoothing"] = _around(smoothing, FACTOR, most=MOST_SMOOTHING)
        if len(labels) > 1 and registry.LOSSES[loss.kind].needs_teacher and loss.weight:
            spaces[f"{label}.weight"] = _around(loss.weight, WEIGHT_FACTOR)
    if published is not None:
        spaces |= TypeAdapter(dict[str, Space]).validate_python(published.tune)
    return spaces


def _mix(entry: Entry) -> str | None:
    if entry.losses is not None:
        return None
    return entry.use if isinstance(entry, MethodConfig) else MIXES[entry.name]


def _around(value: float, factor: float, most: float = math.inf) -> Range:
    return Range(low=rounded(value / factor), high=min(rounded(value * factor), most), log=True)


def rounded(value: float) -> float:
    """To three digits: what a config can be read with."""
    return float(f"{value:.3g}")


def ends(space: Space) -> list[Any]:
    """The values of a space of which each has to be possible: both ends of a range, all of a list."""
    if isinstance(space, Range):
        return [int(end) if space.whole else end for end in (space.low, space.high)]
    return space


def with_values(entry: Entry, values: Mapping[str, Any], training: Training) -> Entry:
    """The method with values in place, by key: ``kd.temperature``, or ``training.optimizer.lr``.

    Parts of the training that it had nothing of are of the kind that they are of in ``training``. Raises
    ``ConfigError`` where a term, a key or a value is none; the problems are at ``("tune", key)``.
    """
    written = entry.model_dump(mode="json", exclude_unset=True, exclude={"tune"}, by_alias=True)
    for key, value in values.items():
        first, _, rest = key.partition(".")
        if first == "training":
            if not rest:
                raise ConfigError(
                    [Problem(("tune", key), "none of the training's keys is named", EXAMPLE, True)]
                )
            written["training"] = written.get("training") or {}
            _put(written["training"], rest.split("."), value, training)
            continue
        own = written.get("losses")
        terms = own or copy.deepcopy(published_methods()[_mix(entry) or ""].losses)
        if problem := applied(by_label(terms), key, value, ["training"]):
            raise ConfigError([Problem(("tune", key), problem.message, problem.hint, True)])
        if not own:
            written["set"] = written.get("set", {}) | {key: value}
    try:
        return type(entry).model_validate(written)
    except ValidationError as error:
        [problem, *_] = translated(error, written, type(entry))
        raise ConfigError(
            [Problem(("tune", *values), problem.message, problem.hint, problem.on_key)]
        ) from None


def _put(node: dict[str, Any], keys: list[str], value: Any, around: Any) -> None:
    """Set a value below a part of a training, in place."""
    *parents, last = keys
    for parent in parents:
        around = getattr(around, parent, None)
        kind = getattr(around, "kind", None)
        if not isinstance(node.get(parent), dict):
            node[parent] = {} if kind is None else {"kind": kind}
        node = node[parent]
    node[last] = value
