"""What has to agree where students act by themselves, for rewards: who acts, who learns, and beside whom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from kdrun import errors, registry
from kdrun.config.mixes import Method, control_method, expanded_method, published_methods
from kdrun.config.parts import ControlConfig, Experiment, MethodConfig, ModelUse
from kdrun.contracts import LossConfig, Rollouts
from kdrun.controls import ALONE, CONTROLS, MATCHED, SHUFFLED, SMOOTHED
from kdrun.errors import ConfigError, Problem
from kdrun.optimization import merged

Placed = tuple[errors.Path, Method]
"""A method, and where it stands in the config."""

OF_POOLS = ("start", "cap", "teacher_share")
"""Keys of rollouts that are kept, and of a teacher that acts."""
BY_ITSELF = "write `training: {rollouts: {source: self, states: 2048}}`, for the methods and `alone` alike"
ITS_OWN = "write `controls: [{{name: {}, losses: [{{kind: ppo}}]}}]`"
OF_LABELS = {
    SMOOTHED: "remove it",
    SHUFFLED: "remove it, and add a method whose terms have `shuffle_teacher: true`",
}
"""Controls that say nothing where rewards teach, and what helps."""


def reward_problems(experiment: Experiment) -> Iterator[Problem]:
    """What does not go together where students act by themselves for rewards."""
    methods = list(_written(experiment))
    if not registry.DATASETS[experiment.dataset.kind].plays:
        for _, method in methods:
            for loss, place in zip(method.losses, method.paths, strict=True):
                if registry.LOSSES[loss.kind].of_rewards:
                    words = f"'{loss.kind}' learns from rewards, and the samples are of no environment"
                    yield Problem(place, words, "write `dataset: {kind: gym, …}`, or another loss")
        return
    if getattr(experiment.dataset, "target", None) is not None and experiment.dataset.validation == 0:
        words = "what a student reaches is looked at on the validation share, and there is none"
        yield Problem(("dataset", "target"), words, "add `validation: 0.1` to the data set")
    for path, method in methods:
        yield from _acting_problems(path, method, experiment.students, experiment)
    for name, teacher in experiment.teachers.items():
        if teacher.sources and teacher.method is not None:
            place = ("teachers", name, "method")
            for method in _named(teacher.method, methods, experiment):
                yield from _acting_problems(place, method, {name: teacher}, experiment)
    if any(_rewarded(method) for _, method in methods if method.name not in CONTROLS):
        yield from _beside_problems(methods, experiment)


def own_control_problems(
    control: ControlConfig, path: errors.Path, experiment: Experiment
) -> Iterator[Problem]:
    """What is wrong with the losses that a control has of its own, if it has any."""
    place, losses = (*path, "losses"), control.losses
    if losses is None:
        return
    if control.name not in (ALONE, MATCHED):
        words = f"'{control.name}' is {CONTROLS[control.name]}: it has no losses of its own"
        yield Problem(place, words, "remove them, or add a method of another name", True)
    elif not registry.DATASETS[experiment.dataset.kind].plays:
        words = f"'{control.name}' learns from the labels alone, by `ce`"
        yield Problem(place, words, "remove them, or add a method of another name", True)
    elif any(registry.LOSSES[loss.kind].needs_teacher for loss in losses):
        words = f"'{control.name}' is {CONTROLS[control.name]}, and one of its losses looks at one"
        yield Problem(place, words, "add a method of another name")
    elif control.set:
        yield Problem((*path, "set"), "`set` changes a published mix", "change the losses themselves", True)
    elif not all(loss.weight for loss in losses):
        yield Problem(place, "one of its losses counts nothing", "write weights above 0")


def _written(experiment: Experiment) -> Iterator[Placed]:
    """The controls and methods that can be written out, with their places; of the others it is said elsewhere."""
    teachers = experiment.named_teachers
    for name, control in experiment.controlled_by.items():
        with suppress(ConfigError):
            path = experiment.control_path(name)
            yield path, control_method(control, path, teachers)
    for number, method in enumerate(experiment.methods):
        yield from ((("methods", number), one) for one in _expanded(method, ("methods", number), experiment))


def _expanded(method: MethodConfig, path: errors.Path, experiment: Experiment) -> Iterator[Method]:
    if method.use in published_methods() if method.losses is None else method.use is None:
        with suppress(ConfigError):
            yield expanded_method(method, path, experiment.named_teachers)


def _named(name: str, methods: Sequence[Placed], experiment: Experiment) -> Iterator[Method]:
    """The method of a name, or the published one that the config does not list, if there is one."""
    listed = [method for _, method in methods if method.name == name]
    yield from listed or _expanded(MethodConfig(name=name, use=name), (), experiment)


def _rewarded(method: Method) -> list[LossConfig]:
    """Its terms that learn from rewards."""
    return [loss for loss in method.losses if registry.LOSSES[loss.kind].of_rewards]


def _rollouts(method: Method, models: Mapping[str, ModelUse], experiment: Experiment) -> dict[str, Rollouts]:
    """By which a method has each of some models act, if it does."""
    found = {
        name: merged(experiment.training_of(model), method.training).rollouts
        for name, model in models.items()
    }
    return {name: how for name, how in found.items() if how is not None}


def _acting_problems(
    path: errors.Path, method: Method, models: Mapping[str, ModelUse], experiment: Experiment
) -> Iterator[Problem]:
    """A method that learns from rewards, and models that do not act for them; and the other way round."""
    rewarded, rollouts = _rewarded(method), _rollouts(method, models, experiment)
    if len(rewarded) > 1:
        words = f"'{rewarded[0].label}' and '{rewarded[1].label}' both say what rewards are to be expected"
        yield Problem(path, words, "keep one")
    for name, model in models.items():
        how = rollouts.get(name)
        by_itself = how is not None and how.source == "self"
        fitted = registry.MODELS[model.model.kind].fitted
        if rewarded and not by_itself and not fitted:
            words = f"'{rewarded[0].label}' learns from what '{name}' itself did last, which does not act by itself"
            yield Problem(path, words, BY_ITSELF)
        if how is not None:
            for loss, place in zip(method.losses, method.paths, strict=True):
                if registry.LOSSES[loss.kind].remembers:
                    words = f"'{loss.kind}' keeps something of each sample, and `rollouts` bring others"
                    yield Problem(place, words, f"use another loss, or give '{name}' no `rollouts`")
        if how is None or not by_itself:
            continue
        if fitted and not rewarded:
            words = f"'{name}' ({model.model.kind}) is fitted to all that is gathered, and `source: self` keeps little"
            yield Problem(path, words, "give it `training: {rollouts: {source: student}}`")
        for key in OF_POOLS:
            if key in how.model_fields_set:
                words = f"`{key}` says nothing with `source: self`: no states are kept, and no teacher acts"
                yield Problem(path, words, f"remove `{key}`")


def _beside_problems(methods: Sequence[Placed], experiment: Experiment) -> Iterator[Problem]:
    """Controls that would not show what a teacher gives to students that learn from rewards."""
    for path, method in methods:
        if method.name in (ALONE, MATCHED) and not _rewarded(method):
            words = f"a method learns from rewards, and '{method.name}' would learn what the teacher does"
            yield Problem(path, words, ITS_OWN.format(method.name))
            return
    for path, method in methods:
        if method.name in OF_LABELS:
            words = f"'{method.name}' is of labels, and a method learns from rewards"
            yield Problem(path, words, OF_LABELS[method.name])
    alone = next(
        (_rollouts(one, experiment.students, experiment) for _, one in methods if one.name == ALONE), None
    )
    for path, method in methods if alone is not None else ():
        if _rewarded(method) and _rollouts(method, experiment.students, experiment) != alone:
            words = f"'{method.name}' acts by other `rollouts` than '{ALONE}', beside which it stands"
            yield Problem(path, words, BY_ITSELF)
