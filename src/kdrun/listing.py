"""What a config may name, in words: generated from the components themselves."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic_core import PydanticUndefined

from kdrun import registry
from kdrun.config import (
    ControlConfig,
    Experiment,
    MethodConfig,
    StudentConfig,
    TeacherConfig,
    published_methods,
)
from kdrun.config.parts import Range
from kdrun.contracts import DatasetConfig, LossConfig, Mask, ModelConfig, Published, Queries, Rollouts
from kdrun.data.views import View
from kdrun.optimization import Stage, Training
from kdrun.schedules import Cosine, Step, WarmUp
from kdrun.schema import Schema

SHARED: dict[str, type[Schema]] = {"model": ModelConfig, "loss": LossConfig, "dataset": DatasetConfig}


PARTS: list[tuple[str, str, type[Schema]]] = [
    ("Experiment", "The keys of the YAML file itself.", Experiment),
    ("Training", "`training:`, of the experiment or of one model.", Training),
    ("Teacher", "`teacher:`, or an entry of `teachers:`.", TeacherConfig),
    ("Student", "`student:`, or an entry of `students:`.", StudentConfig),
    (
        "Method",
        "An entry of `methods:`; the name of a published mix alone is short for `{use: NAME}`.",
        MethodConfig,
    ),
    ("Control", "An entry of `controls:`; the name alone will do.", ControlConfig),
    (
        "Queries",
        "`queries:` of a training, a student's or a method's: samples made of the training set's, which only a teacher "
        "can label.",
        Queries,
    ),
    (
        "Rollouts",
        "`rollouts:` of a training, a student's or a method's, where the data set is an environment: states that are "
        "gathered while a student learns, for which its teacher says what it would do.",
        Rollouts,
    ),
    (
        "View",
        "An entry of a data set's `views:`, for models that say `view: NAME`: some columns of a table, or of a picture "
        "its `crop`, `size` and `grey` in turn. It is made of the default view as a batch has it, augmented and mixed, "
        "and normalised like that: each column and each channel by its own figures, grey by the channels' weighted as "
        "they are in it.",
        View,
    ),
    ("Range", "A value of `tune:`; a list of values is the other form.", Range),
    ("Stage", "An entry of a method's `stages:`.", Stage),
    (
        "Mask",
        "`mask:` of a term; the kind alone will do: `teacher-correct` and `teacher-confident` are the samples that the "
        "teacher gets right or is sure of, `labelled` and `unlabelled` those whose label the student sees or not.",
        Mask,
    ),
    ("Warm-up", "`schedule: {kind: warmup}` of a term.", WarmUp),
    ("Linear and cosine", "`schedule:` of a term or a training.", Cosine),
    ("Step", "`schedule: {kind: step}` of a term or a training.", Step),
]
"""The parts of a config that are no components."""


@dataclass(frozen=True)
class Entry:
    """One component: its names, what it is, and its options with defaults and meaning."""

    names: list[str]
    about: str
    options: list[tuple[str, str, str]]


def components(family: str) -> list[Entry]:
    """All components of a family (``loss``, ``model``, ``dataset``) that are loaded."""
    members = registry.FAMILIES[family]
    return [
        Entry(
            [kind for kind in members if members[kind] is component],
            about(component),
            _own_options(family, component),
        )
        for component in members.classes()
    ]


def _own_options(family: str, component: type[Any]) -> list[tuple[str, str, str]]:
    """The options that a component adds to its family's, or gives another default."""
    own, shared = component.Config.model_fields, SHARED[family].model_fields
    same = {name for name in shared if name in own and own[name].default == shared[name].default}
    return options(component.Config, leave_out=same)


def shared_options(family: str) -> list[tuple[str, str, str]]:
    """The options that all components of a family have."""
    return options(SHARED[family], leave_out={"kind"})


def methods() -> list[Entry]:
    """The published methods with their mixes."""
    return [
        Entry(
            [name],
            published.source,
            [(_flow(part), "", "") for part in _parts(published)],
        )
        for name, published in published_methods().items()
    ]


def _parts(published: Published) -> list[Any]:
    """The terms of a mix, and its stages and what its authors tried where it has any."""
    rest = {"stages": published.stages, "tune": published.tune}
    return [*published.losses, *({key: value} for key, value in rest.items() if value)]


def _flow(value: Any) -> str:
    """As it would stand in YAML, on one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
        .removesuffix("...\n")
        .strip()
    )


def about(component: type[Any]) -> str:
    """The docstring: what it is, its formula, the paper."""
    return inspect.getdoc(component) or ""


def options(schema: type[Schema], leave_out: set[str]) -> list[tuple[str, str, str]]:
    """Name, default and meaning of every option."""
    return [
        (
            field.alias or name,
            _default(field.get_default(call_default_factory=True)),
            " ".join((field.description or "").split()),
        )
        for name, field in schema.model_fields.items()
        if name not in leave_out and name != "kind"
    ]


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Schema):
        return str(getattr(value, "kind", ""))
    return (
        ""
        if value is None
        else _flow(value if isinstance(value, int | float | str | list | dict) else str(value))
    )


def markdown() -> str:
    """All of it as a page."""
    lines = [
        "# What a config may name",
        "",
        "Generated by `python -m kdrun.listing > docs/reference.md`.",
        "",
    ]
    for title, about_it, schema in PARTS:
        lines += _section(title, about_it, options(schema, leave_out=set()))
    for title, family in (("Losses", "loss"), ("Models", "model"), ("Data sets", "dataset")):
        lines += [f"## {title}", "", *_options(shared_options(family), "Each of them has"), ""]
        for entry in components(family):
            lines += _section(
                ", ".join(f"`{name}`" for name in entry.names), entry.about, entry.options, "###"
            )
    lines += ["## Methods", ""]
    for entry in methods():
        mix = ", ".join(f"`{term}`" for term, _, _ in entry.options)
        lines += [f"- `{entry.names[0]}`: {mix}. {entry.about}"]
    return "\n".join(lines) + "\n"


def _section(title: str, about: str, rows: list[tuple[str, str, str]], mark: str = "##") -> list[str]:
    return [f"{mark} {title}", "", about, "", *_options(rows), ""]


def _options(rows: list[tuple[str, str, str]], intro: str = "") -> list[str]:
    shown = [f"| `{name}` | {default and f'`{default}`'} | {meaning} |" for name, default, meaning in rows]
    return [*([intro, ""] if intro else []), "| key | default | |", "|---|---|---|", *shown] if rows else []


if __name__ == "__main__":
    print(markdown(), end="")
