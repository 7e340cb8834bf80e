"""Students that are made of others of the same config: which those are, and whether that can be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from kdrun import errors, registry
from kdrun.config.mixes import expanded_method
from kdrun.config.parts import SHORTHANDS, AnyModel, Experiment, StudentConfig, adapter
from kdrun.config.translation import translated
from kdrun.controls import ALONE
from kdrun.errors import ConfigError, Problem, did_you_mean
from kdrun.models import Int8
from kdrun.schema import kind_alone
from kdrun.yamlsource import Source

ANY = {"kind": "mlp"}
"""Stands for a model of which nothing is to be said."""
WITHOUT = ("initial_weights", "pretrained")
"""Options of a model that say where its first weights are from; one that is made of it has those that it ended with."""
SEEN = ("environment", "view", "resize", "normalization")
"""What decides what a student sees."""


def fill_in_origins(data: dict[str, Any], source: Source) -> Iterator[Problem]:
    """Write the model of its origin into each student that is made of another; what is wrong with those that do so.

    What is said of what was filled in points at the ``from``.
    """
    students: Any = data.get("students")
    given: dict[str, Any] = students if isinstance(students, dict) else {}
    for name, student in given.items():
        model = _made_of_another(student)
        if model is None:
            continue
        origin = _model_of(student.get("from"), given, {name})
        if model.get("of") is not None:
            yield from _said_twice(model["of"], origin, ("students", name, "model", "of"))
        given[name] = student | {"model": model | {"of": origin}}
        written = (
            (name,) if SHORTHANDS.get(name) == "students" and name in source.data else ("students", name)
        )
        if "of" not in model:
            source.alias(("students", name, "model", "of"), (*written, "from"))


def _said_twice(written: object, origin: Any, path: errors.Path) -> Iterator[Problem]:
    """What is wrong with a model that is written where `from` says it, too."""
    try:
        own = adapter(AnyModel).validate_python(written)
    except ValidationError as error:
        for problem in translated(error, written, AnyModel):
            yield replace(problem, path=(*path, *problem.path))
        return
    if origin is not ANY and own != _read(origin):
        yield Problem(path, "`from` says of what it is made, and this is another model", "remove it", True)


def _made_of_another(student: object) -> dict[str, Any] | None:
    """The model of a student that is made of another one, as it is written; None for any other."""
    model = kind_alone(student.get("model")) if isinstance(student, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("kind"), str):
        return None
    kind = model["kind"]
    return dict(model) if kind in registry.MODELS and registry.MODELS[kind].compresses else None


def _model_of(name: object, students: Mapping[str, Any], seen: set[str]) -> dict[str, Any]:
    """The model of a student as it is when it is finished, with that of its own origin."""
    if (
        not isinstance(name, str)
        or name not in students
        or name in seen
        or not isinstance(students[name], dict)
    ):
        return ANY
    made = _made_of_another(students[name])
    if made is not None:
        made["of"] = _model_of(students[name].get("from"), students, {*seen, name})
    config = _read(students[name].get("model") if made is None else made)
    if config is None or registry.MODELS[config.kind].fitted or registry.MODELS[config.kind].combines:
        return ANY
    without = {key: value for key, value in zip(WITHOUT, (None, False), strict=True) if hasattr(config, key)}
    written: dict[str, Any] = config.model_copy(update=without).model_dump(mode="json")
    return written


def _read(model: object) -> Any:
    """The model's config, or None where it is none."""
    try:
        return adapter(AnyModel).validate_python(model)
    except ValidationError:
        return None


def origin_problems(experiment: Experiment, methods: Iterable[str]) -> Iterator[Problem]:
    """What is wrong with students that are made of others, and with teachers that would be."""
    for name, teacher in experiment.teachers.items():
        kind = teacher.model.kind
        if registry.MODELS[kind].compresses and teacher.run is None:
            words = f"'{kind}' is made of a finished student, and a teacher is not"
            yield Problem(
                ("teachers", name, "model"),
                words,
                "write it as a student, and `run: FOLDER` where it teaches",
            )
    for name, student in experiment.students.items():
        path: errors.Path = ("students", name)
        found = list(_own_problems(name, student, path, experiment))
        yield from found
        if found or student.from_ is None:
            continue
        if (student.method or ALONE) not in methods:
            hint = did_you_mean(student.method or ALONE, methods)
            yield Problem((*path, "method"), f"no student is trained by '{student.method}'", hint)
        yield from _method_problems(student.method, path, experiment)


def _method_problems(name: str | None, path: errors.Path, experiment: Experiment) -> Iterator[Problem]:
    """A method whose students predict by parts of a loss, and not by their model alone."""
    method = next((one for one in experiment.methods if one.name == name), None)
    if method is None:
        return
    with suppress(ConfigError):  # said of the method itself
        terms = expanded_method(method, (), list(experiment.teachers)).losses
        if kinds := [term.kind for term in terms if registry.LOSSES[term.kind].at_inference]:
            words = f"what '{name}' trains predicts by parts of its loss '{kinds[0]}', too"
            yield Problem((*path, "method"), words, "name another method")


def _own_problems(
    name: str, student: StudentConfig, path: errors.Path, experiment: Experiment
) -> Iterator[Problem]:
    kind, students = student.model.kind, experiment.students
    if not registry.MODELS[kind].compresses:
        for key, value in {"from": student.from_, "method": student.method}.items():
            if value is not None:
                words = f"'{kind}' is made of no other student, so `{key}` says nothing"
                yield Problem(
                    (*path, key), words, "remove it, or write `model: pruned` or `model: int8`", True
                )
        return
    if student.from_ is None:
        yield Problem(
            path, f"'{kind}' is made of a finished student", "write `from: NAME`, and `method: NAME`"
        )
        return
    origin = students.get(student.from_)
    if origin is None:
        others = [other for other in students if other != name]
        words, hint = f"there is no student '{student.from_}'", did_you_mean(student.from_, others)
        yield Problem((*path, "from"), words, hint or "the config has no other")
        return
    if _in_circle(name, students):
        yield Problem(
            (*path, "from"), "the students are made of each other in a circle", "begin with a plain model"
        )
        return
    made_by = registry.MODELS[origin.model.kind]
    if made_by.fitted or made_by.combines:
        words = f"'{student.from_}' ({origin.model.kind}) is fitted at once and has no weights to train on"
        yield Problem((*path, "from"), words, "name a network")
    if issubclass(made_by, Int8):
        words = f"'{student.from_}' is in int8, and whole numbers learn no more"
        yield Problem((*path, "from"), words, "prune first, and make int8 of that")
    for key in SEEN:
        own, its = getattr(student, key), getattr(origin, key)
        if own != its:
            words = f"what is made of '{student.from_}' has to see what that one sees"
            cure = f"remove `{key}`" if its is None else f"write `{key}: {its}` here, too"
            yield Problem((*path, key) if own is not None else path, words, cure)


def _in_circle(name: str, students: Mapping[str, StudentConfig]) -> bool:
    seen, at = [name], students[name].from_
    while at is not None and at in students and at not in seen:
        seen.append(at)
        at = students[at].from_
    return at in seen


def line_of(name: str, students: Mapping[str, StudentConfig]) -> list[str]:
    """A student, the one that it is made of, and so on."""
    line = [name]
    while (origin := students[line[-1]].from_) is not None:
        line.append(origin)
    return line


def origins_first(students: Mapping[str, StudentConfig]) -> list[str]:
    """Names such that a student comes after the one that it is made of."""
    order: list[str] = []
    while len(order) < len(students):
        order += [n for n, s in students.items() if n not in order and (s.from_ is None or s.from_ in order)]
    return order
