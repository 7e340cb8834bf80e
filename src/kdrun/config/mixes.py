"""Methods written out: published mixes, what a config changes of them, and what a method says for all its terms."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from kdrun import errors, registry
from kdrun.config.parts import AnyLoss, ControlConfig, MethodConfig, adapter
from kdrun.config.translation import translated
from kdrun.contracts import JointLoss, LossConfig, Published
from kdrun.controls import ALONE, MATCHED, MIXES, SHUFFLED
from kdrun.errors import ConfigError, Problem, did_you_mean
from kdrun.optimization import Recipe, Stage


@dataclass(frozen=True)
class Method:
    """A method with all its terms, and the places in the config that they come from."""

    name: str
    losses: tuple[LossConfig, ...]
    paths: tuple[errors.Path, ...]
    stages: tuple[Stage, ...] = ()
    momentum_gap: float | None = None
    training: Recipe | None = None
    """what it changes of a student's training"""
    tuning_trials: int | None = None
    """how many trials chose its values"""
    matches_cost: bool = False
    """whether it trains for as long as costs what the dearest of the other methods costs"""

    def towards(self, sources: list[str]) -> Method:
        """The method with every term that looks at a teacher looking at these."""
        target = sources[0] if len(sources) == 1 else sources
        losses = tuple(
            loss.model_copy(update={"teacher": target}) if registry.LOSSES[loss.kind].needs_teacher else loss
            for loss in self.losses
        )
        return replace(self, losses=losses)


def published_methods() -> dict[str, Published]:
    """The published mixes by method name, as losses declare them."""
    mixes = {name: mix for loss in registry.LOSSES.classes() for name, mix in loss.published.items()}
    return dict(sorted(mixes.items()))


def as_method(control: ControlConfig, teachers: list[str]) -> MethodConfig:
    """The mix that a control is: its own, or the published one with what it changes of it.

    Shuffled, with all teachers there are.
    """
    return MethodConfig(
        name=control.name,
        use=MIXES[control.name] if control.losses is None else None,
        losses=control.losses,
        set=control.set,
        teacher=teachers if control.name == SHUFFLED else None,
        training=control.training,
        tuning_trials=control.tuning_trials,
    )


def control_method(control: ControlConfig, path: errors.Path, teachers: list[str]) -> Method:
    """A control, written out."""
    method = expanded_method(as_method(control, teachers), path, teachers)
    shuffled = [
        loss.model_copy(update={"shuffle_teacher": True}) if loss.teachers else loss for loss in method.losses
    ]
    return replace(method, losses=tuple(shuffled), matches_cost=control.name == MATCHED)


def supervised() -> Method:
    """What a teacher is trained with that learns from labels alone."""
    return control_method(ControlConfig(name=ALONE), (), [])


NOTHING = Method("", (), ())
"""What is learnt by acting has no terms."""


def expanded_method(method: MethodConfig, path: errors.Path, teachers: list[str]) -> Method:
    """The method's terms: its own, or the published ones with ``set`` applied; teachers filled in."""
    if method.losses is not None:
        paths = tuple((*path, "losses", n) for n in range(len(method.losses)))
        losses = method.losses
    else:
        assert method.use is not None
        terms = copy.deepcopy(published_methods()[method.use].losses)
        labels = by_label(terms)
        problems = [p for key, value in method.set.items() if (p := applied(labels, key, value))]
        if problems:
            raise ConfigError([replace(p, path=(*path, "set", *p.path)) for p in problems])
        try:
            losses = adapter(list[AnyLoss]).validate_python(terms)
        except ValidationError as error:
            raise ConfigError(_set_problems(error, terms, [*labels], path)) from None
        paths = tuple((*path, loss.label) for loss in losses)
    stages = method.stages
    if stages is None and method.use is not None:
        stages = _renamed(published_methods()[method.use], [loss.label for loss in losses])
    return Method(
        method.name,
        tuple(_completed(loss, method, teachers) for loss in losses),
        paths,
        tuple(stages or ()),
        method.momentum_gap,
        method.training,
        method.tuning_trials,
    )


def _renamed(published: Published, labels: list[str]) -> list[Stage]:
    """The published stages, with what `set` calls their terms."""
    names = dict(zip(by_label(published.losses), labels, strict=True))
    stages = adapter(list[Stage]).validate_python(published.stages)
    return [
        stage.model_copy(update={"losses": stage.losses and [names[name] for name in stage.losses]})
        for stage in stages
    ]


def _completed(loss: LossConfig, method: MethodConfig, teachers: list[str]) -> LossConfig:
    """The term with what the method says for all, and its teacher: its own, the method's, or the only one there is.

    Losses that weigh several teachers see them all where none is named.
    """
    loss_class = registry.LOSSES[loss.kind]
    if not loss_class.needs_teacher:
        return loss
    only: Any = teachers[0] if len(teachers) == 1 else None
    joint = issubclass(loss_class, JointLoss)
    if joint and len(teachers) > 1:
        only = teachers
    changes: dict[str, Any] = {"teacher": loss.teacher or method.teacher or only}
    if method.combine is not None and "combine" not in loss.model_fields_set and not joint:
        changes["combine"] = method.combine
    if method.early_stop is not None and loss.last_epoch is None:
        changes["last_epoch"] = method.early_stop
    return loss.model_copy(update=changes)


def by_label(terms: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Terms as they are written, by what ``set`` calls them: their name, or else their kind."""
    return {term.get("name") or term["kind"]: term for term in terms}


def applied(
    labels: dict[str, dict[str, Any]], key: str, value: Any, others: Iterable[str] = ()
) -> Problem | None:
    """Set one ``term.key`` of a mix, in place; the problem, at the key, if it cannot be.

    ``others`` are what may be named beside the terms.
    """
    known = [label for label in labels if f"{key}.".startswith(f"{label}.")]  # a name may have dots, too
    name = max(known, key=len, default=key.partition(".")[0])
    rest = key.removeprefix(name).removeprefix(".")
    how = "write TERM.KEY, for instance kd.temperature"
    if name not in labels:
        hint = f"{did_you_mean(name, [*labels, *others])}; {how}"
        return Problem((key,), f"'{name}' is no term of this mix", hint, True)
    if not rest:
        return Problem((key,), f"'{name}' is a term, and none of its keys is named", how, True)
    target = labels[name]
    *parents, last = rest.split(".")
    for parent in parents:
        inner = target.setdefault(parent, {})
        if not isinstance(inner, dict):
            return Problem(
                (key,),
                f"'{parent}' of '{name}' has no keys",
                f"write it whole: {name}.{parent}",
                True,
            )
        target = inner
    target[last] = value
    return None


def _set_problems(
    error: ValidationError, terms: list[Any], labels: list[str], path: errors.Path
) -> list[Problem]:
    """Errors in a changed published mix, at the ``set`` keys that caused them."""
    problems = []
    for problem in translated(error, terms, list[AnyLoss]):
        number, *rest = [part for part in problem.path]
        assert isinstance(number, int)
        key = ".".join([labels[number], *(str(part) for part in rest)])
        problems.append(Problem((*path, "set", key), problem.message, problem.hint, problem.on_key))
    return problems
