"""What has to agree where policies are distilled: who shows the states, who acts, and what says nothing there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kdrun import errors, registry
from kdrun.config.parts import Experiment, TeacherConfig
from kdrun.data.episodes import EnvironmentConfig, opened, with_physics
from kdrun.errors import DataError, Problem, did_you_mean
from kdrun.optimization import Recipe
from kdrun.statistics.scores import NORMALISED, RETURN

OF_SAMPLES = {
    "queries": ("the teacher is asked about states that are visited", "write `rollouts`"),
    "mixup": ("a mixed state is none", "remove it"),
    "cutmix": ("a mixed state is none", "remove it"),
}
"""Keys of a training that say nothing of states: why, and what to write instead."""


def policy_problems(experiment: Experiment) -> Iterable[Problem]:
    """What does not go with a data set of states, or goes with no other."""
    if registry.DATASETS[experiment.dataset.kind].plays:
        yield from _demonstrator_problems(experiment)
        yield from _kinds(experiment)
        for path, training in _trainings(experiment):
            for key, (words, cure) in OF_SAMPLES.items():
                if getattr(training, key):
                    yield Problem((*path, key), words, cure, True)
        return
    if experiment.dataset.metric in (RETURN, NORMALISED):
        words = "a return is what a policy gets in an environment, and these samples are of none"
        yield Problem(("dataset", "metric"), words, "write `kind: gym`, or another metric")
    for path, training in _trainings(experiment):
        if training.rollouts is not None:
            words = "there is no environment to act in"
            yield Problem((*path, "rollouts"), words, "remove it, or write `dataset: {kind: gym, …}`", True)
    for path, kind in _models(experiment):
        if registry.MODELS[kind].reinforced:
            words = f"'{kind}' learns by acting in an environment, and the data set is none"
            yield Problem(path, words, "write `dataset: {kind: gym, …}`, or another model")


def _demonstrator_problems(experiment: Experiment) -> Iterator[Problem]:
    if experiment.environments:  # each has its own; see ``environments``
        return
    named = getattr(experiment.dataset, "demonstrator", None)
    if not experiment.teachers:
        words = "the students see the states that a teacher visits, and there is none"
        yield Problem(("dataset",), words, "add `teacher: {model: {kind: dqn}}`")
    elif experiment.demonstrator_of() is None:
        yield Problem(("teachers",), "all teachers are distilled from others", "add one that is not")
    elif named is not None and named not in experiment.teachers:
        hint = did_you_mean(named, experiment.teachers)
        yield Problem(("dataset", "demonstrator"), f"there is no teacher '{named}'", hint)
    elif named is not None and experiment.teachers[named].sources:
        words = f"'{named}' is itself distilled, from states that another one shows"
        yield Problem(("dataset", "demonstrator"), words, "name a teacher that is not")


def _kinds(experiment: Experiment) -> Iterator[Problem]:
    """Models that cannot stand where they stand."""
    able = ", ".join(kind for kind in registry.MODELS if registry.MODELS[kind].reinforced)
    for name, teacher in experiment.teachers.items():
        path: errors.Path = ("teachers", name, "model")
        model = registry.MODELS[teacher.model.kind]
        if model.reinforced:
            if teacher.view is not None:
                words = f"'{teacher.model.kind}' sees what the environment gives, and that is the view `observation`"
                yield Problem(("teachers", name, "view"), words, "remove it", True)
            if teacher.sources:
                words = f"'{teacher.model.kind}' learns by acting, and not from other teachers"
                yield Problem(path, words, "write another model, as `{kind: mlp}`, or remove `from`")
            if teacher.training is not None and not _finished(teacher):
                words = f"'{teacher.model.kind}' learns as its model says, so `training` says nothing"
                yield Problem(("teachers", name, "training"), words, "write `steps` in the model", True)
            yield from _physics_problems(experiment, teacher, path)
        elif model.fitted or teacher.model.kind == "cascade":
            words = f"'{teacher.model.kind}' cannot teach how to act"
            yield Problem(path, words, f"use {able}, or a network")
        elif not _finished(teacher) and not teacher.sources:
            words = f"nobody shows '{name}' what to do: a teacher learns by acting, or from other teachers"
            yield Problem(path, words, f"use {able}, or say `from` which teacher it is distilled")
    for name, student in experiment.students.items():
        if registry.MODELS[student.model.kind].reinforced:
            words = f"'{student.model.kind}' learns by acting, and a student from a teacher"
            yield Problem(("students", name, "model"), words, "use a network, as `{kind: mlp}`, or a tree")


def _physics_problems(experiment: Experiment, teacher: TeacherConfig, path: errors.Path) -> Iterator[Problem]:
    """Numbers that the environment does not have in which an agent is to learn; of the environment it is said later."""
    physics = getattr(teacher.model, "physics", None)
    if not physics or not isinstance(experiment.dataset, EnvironmentConfig):
        return
    try:
        opened(with_physics(experiment.dataset, physics)).close()
    except DataError as error:
        key, _, words = str(error).partition(": ")
        if key.startswith("dataset.physics."):
            name = key.removeprefix("dataset.physics.")
            yield Problem((*path, "physics", name), words)


def _finished(teacher: TeacherConfig) -> bool:
    return teacher.weights is not None or teacher.run is not None


def _trainings(experiment: Experiment) -> Iterator[tuple[errors.Path, Recipe]]:
    """All trainings that are written, with their places."""
    yield ("training",), experiment.training
    for family in ("teachers", "students"):
        for name, model in getattr(experiment, family).items():
            if model.training is not None:
                yield (family, name, "training"), model.training
    for number, method in enumerate(experiment.methods):
        if method.training is not None:
            yield ("methods", number, "training"), method.training
    for name, control in experiment.controlled_by.items():
        if control.training is not None:
            yield (*experiment.control_path(name), "training"), control.training


def _models(experiment: Experiment) -> Iterator[tuple[errors.Path, str]]:
    for family in ("teachers", "students"):
        for name, model in getattr(experiment, family).items():
            yield (family, name, "model"), model.model.kind
