"""What has to agree where a data set has several environments: who is for which, and who teaches whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

from kdrun import errors, registry
from kdrun.config.mixes import Method, control_method, expanded_method
from kdrun.config.parts import Experiment, StudentConfig
from kdrun.contracts import Loss
from kdrun.errors import ConfigError, Problem, did_you_mean
from kdrun.losses.base import LogitLoss
from kdrun.losses.labels import LabelLoss

FOR_ALL = "specialists"
"""The kind of a teacher that acts in all environments."""


def environment_problems(experiment: Experiment) -> Iterable[Problem]:
    """What does not go with several environments, or goes with nothing else."""
    if not experiment.environments:
        yield from _of_one(experiment)
        return
    yield from _unknown(experiment)
    yield from _teachers(experiment)
    yield from _lacking(experiment)
    for name, student in experiment.students.items():
        if student.environment is None:
            yield from _of_all(student, ("students", name))
    yield from _terms(experiment)


def _of_one(experiment: Experiment) -> Iterator[Problem]:
    several = "write `dataset: {kind: gyms, environments: …}`"
    for family in ("teachers", "students"):
        for name, model in getattr(experiment, family).items():
            if model.environment is not None:
                words = "the data set has not several environments"
                yield Problem((family, name, "environment"), words, f"remove it, or {several}", True)
    for name, teacher in experiment.teachers.items():
        if teacher.model.kind == FOR_ALL:
            words = f"'{FOR_ALL}' are for several environments, and the data set has none, or one"
            yield Problem(("teachers", name, "model"), words, f"use ensemble, or {several}")


def _unknown(experiment: Experiment) -> Iterator[Problem]:
    for family in ("teachers", "students"):
        for name, model in getattr(experiment, family).items():
            if model.environment not in (None, *experiment.environments):
                hint = did_you_mean(model.environment, experiment.environments)
                words = f"there is no environment '{model.environment}'"
                yield Problem((family, name, "environment"), words, hint)


def _teachers(experiment: Experiment) -> Iterator[Problem]:
    """One for each environment, and one that is all of them."""
    known: dict[str | None, str] = {}
    for name, teacher in experiment.teachers.items():
        path: errors.Path = ("teachers", name)
        for_all = teacher.model.kind == FOR_ALL
        if for_all and teacher.environment is not None:
            words = f"'{FOR_ALL}' act in all environments"
            yield Problem((*path, "environment"), words, "remove it", True)
            continue
        if for_all and teacher.expect is not None:
            words = f"'{FOR_ALL}' are what returns are measured by: its normalised return is 1"
            yield Problem((*path, "expect"), words, "write what is expected of each of them", True)
        if not for_all and teacher.environment is None:
            words = f"nobody says in which environment '{name}' acts"
            hint = f"add `environment: NAME`; {did_you_mean('', experiment.environments)}"
            yield Problem(path, words, hint)
            continue
        if teacher.environment in known:
            where = "all environments" if for_all else f"'{teacher.environment}'"
            words = f"'{known[teacher.environment]}' is the teacher of {where} already"
            yield Problem(path, words, "keep one, or compare both by two configs", True)
            continue
        known[teacher.environment] = name
        if for_all:
            yield from _members(teacher.sources, (*path, "from"), experiment)


def _members(names: list[str], path: errors.Path, experiment: Experiment) -> Iterator[Problem]:
    members = [experiment.teachers[name].environment for name in names if name in experiment.teachers]
    if len(members) == len(names) and sorted(map(str, members)) != sorted(experiment.environments):
        words = f"these are not one teacher for each of {', '.join(experiment.environments)}"
        yield Problem(path, words, "name one for each", True)


def _lacking(experiment: Experiment) -> Iterator[Problem]:
    """Students of whose environment there is no teacher."""
    for name, student in experiment.students.items():
        environment = student.environment
        if environment in (None, *experiment.environments) and not experiment.demonstrator_of(environment):
            if environment is None:
                words = f"'{name}' acts in all environments, and no teacher does"
                every = ", ".join(one for one, of in experiment.teachers.items() if of.environment)
                cure = f"add `specialists: {{model: {FOR_ALL}, from: [{every}]}}` to the teachers"
            else:
                words = f"'{name}' acts in '{environment}', and no teacher does"
                cure = f"add one with `environment: {environment}`"
            yield Problem(("students", name), words, cure)


def _of_all(student: StudentConfig, path: errors.Path) -> Iterator[Problem]:
    """What a student of all environments cannot be."""
    if registry.MODELS[student.model.kind].fitted:
        words = f"'{student.model.kind}' has no heads, and each environment has actions of its own"
        yield Problem((*path, "model"), words, "use a network, or add `environment: NAME`")
    for key in ("resize", "normalization"):
        if getattr(student, key) is not None:
            words = "its inputs are of several environments, and tell which"
            yield Problem((*path, key), words, "write `view: scaled`", True)


def _terms(experiment: Experiment) -> Iterator[Problem]:
    """Terms that name a teacher, and those that cannot learn from actions that are others in each environment."""
    taught_in_all = any(student.environment is None for student in experiment.students.values())
    for number, method in enumerate(experiment.methods):
        path: errors.Path = ("methods", number)
        words = "each student learns from the teacher of its environment"
        if method.teacher is not None:
            yield Problem((*path, "teacher"), words, "remove it", True)
        for place, loss in enumerate(method.losses or ()):
            if loss.teacher is not None:
                yield Problem((*path, "losses", place, "teacher"), words, "remove it", True)
    for expanded in _written_out(experiment) if taught_in_all else ():
        yield from _wide_terms(expanded)


def _written_out(experiment: Experiment) -> Iterator[Method]:
    """The controls and methods that can be; of the others it is said elsewhere."""
    teachers = experiment.named_teachers
    for name, control in experiment.controlled_by.items():
        with suppress(ConfigError):
            yield control_method(control, experiment.control_path(name), teachers)
    for number, method in enumerate(experiment.methods):
        with suppress(ConfigError, KeyError):
            yield expanded_method(method, ("methods", number), teachers)


def _wide_terms(method: Method) -> Iterator[Problem]:
    for loss, place in zip(method.losses, method.paths, strict=True):
        kind = registry.LOSSES[loss.kind]
        if not issubclass(kind, LogitLoss | LabelLoss) or kind.build not in (Loss.build, LabelLoss.build):
            words = (
                f"'{loss.kind}' looks at more than logits, or keeps something for each class, and each environment has "
                "actions of its own"
            )
            yield Problem(place, words, "use policy-kl, hard or logit-mse, or students of one environment")
