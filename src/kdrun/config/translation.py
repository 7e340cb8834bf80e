"""What pydantic says of a config, in words, at a place in the file."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import Tag, ValidationError

from kdrun import errors, registry
from kdrun.config.parts import SHORTHANDS, AnyOf, Experiment
from kdrun.errors import Problem, did_you_mean
from kdrun.schema import Schema

_COMPARISONS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "path_type": "a path",
    "union_tag_not_found": "a mapping with a `kind`",
}

_DEVICES = ["auto", "cpu", "cuda", "cuda:1", "mps"]


def translated(error: ValidationError, data: Any, schema: Any) -> list[Problem]:
    """Pydantic's errors in our words, one for each place."""
    problems: dict[errors.Path, Problem] = {}
    for item in error.errors(include_url=False):
        location = item["loc"]
        on_key = location[-1:] == ("[key]",)
        path = _without_tags(location[:-1] if on_key else location, data, item["type"] == "missing")
        problem = _problem(item, path, schema)
        problems.setdefault(problem.path, replace(problem, on_key=problem.on_key or on_key))
    # Where several forms are allowed, what is wrong inside of the form that was taken says more than the others.
    outer = {path[:depth] for path in problems for depth in range(len(path))}
    return [problem for path, problem in problems.items() if path not in outer or problem.on_key]


def _without_tags(location: tuple[int | str, ...], data: Any, is_missing: bool) -> errors.Path:
    """Pydantic's location without the names of union members, which are not in the file as a missing key is not."""
    path: list[int | str] = []
    node = data
    last = len(location) - 1
    for number, part in enumerate(location):
        listed = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if listed or (isinstance(node, Mapping) and part in node):
            node = node[part]
        elif is_missing and isinstance(node, Mapping) and number == last and node.get("kind") != part:
            node = None
        else:
            continue
        path.append(part)
    return tuple(path)


def _problem(item: Any, path: errors.Path, schema: Any) -> Problem:
    kind, context, given = item["type"], item.get("ctx", {}), item["input"]
    if kind == "extra_forbidden":
        known = _keys_at(item["loc"][:-1], schema)
        return Problem(path, f"unknown key '{path[-1]}'", did_you_mean(path[-1], known), True)
    if kind == "missing":
        key = item["loc"][-1]  # not in the path where the kind alone stands for the mapping
        return Problem(path[:-1] if path[-1:] == (key,) else path, f"the key '{key}' is missing")
    if kind == "union_tag_invalid":
        tag, tags = given["kind"], re.findall(r"'([^']*)'", context["expected_tags"])
        return Problem((*path, "kind"), _unknown("kind", tag), did_you_mean(tag, tags))
    if kind in ("union_tag_not_found", "model_attributes_type") and isinstance(given, Mapping):
        return _without_kind(given, path, _kinds_at(item["loc"], schema))
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context["expected"])
        return Problem(path, _unknown("value", given), did_you_mean(given, allowed))
    if kind in _COMPARISONS:
        key, words = _COMPARISONS[kind]
        return Problem(path, f"{given!r} is out of range", f"write a number that is {words} {context[key]}")
    if kind in _TYPES:
        return Problem(path, f"{_shown(given)} is not {_TYPES[kind]}")
    if kind == "value_error":
        return Problem(path, str(context["error"]))
    if kind == "string_pattern_mismatch":
        near = "cuda" if given.lower() == "gpu" else given
        return Problem(path, _unknown("value", given), did_you_mean(near, _DEVICES))
    if kind in ("too_short", "too_long"):
        wanted = context.get("min_length", context.get("max_length"))
        instead = " or more" if kind == "too_short" else " or fewer" if isinstance(given, Mapping) else ""
        return Problem(path, f"has {len(given)} entries", f"write {wanted}{instead}")
    if kind == "finite_number":
        return Problem(path, f"{given!r} is not a finite number")
    return Problem(path, item["msg"])


def _unknown(noun: str, given: object) -> str:
    return f"unknown {noun} '{given}'" if isinstance(given, str) else f"{_shown(given)} is no known {noun}"


def _without_kind(given: Mapping[str, Any], path: errors.Path, kinds: list[str]) -> Problem:
    """What is wrong with a mapping that says no ``kind``: it may be misspelt."""
    for key in given:
        if near := did_you_mean(key, ["kind"], list_all=False):
            return Problem((*path, key), f"unknown key '{key}'", near, True)
    return Problem(path, "the key 'kind' is missing", did_you_mean("", kinds))


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    return "nothing" if value is None else f"{value!r}"


def _keys_at(location: tuple[int | str, ...], annotation: Any) -> list[str]:
    """The keys allowed in the mapping at one of pydantic's locations, for 'did you mean'."""
    annotation = _bare(functools.reduce(_below, location, annotation))
    if not (isinstance(annotation, type) and issubclass(annotation, Schema)):
        return []
    keys = [field.alias or name for name, field in annotation.model_fields.items()]
    return [*keys, *SHORTHANDS] if annotation is Experiment else keys


def _kinds_at(location: tuple[int | str, ...], annotation: Any) -> list[str]:
    """The kinds that the mapping at one of pydantic's locations can be of."""
    annotation = functools.reduce(_below, location, annotation)
    if family := _family(annotation):
        return list(family)
    members = get_args(_bare(annotation))
    return [kind for member in members for kind in get_args(member.model_fields["kind"].annotation)]


def _family(annotation: Any) -> registry.Family | None:
    """The family that a type is any component of."""
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, AnyOf | registry.Family):
            return mark.family if isinstance(mark, AnyOf) else mark
    return None


def _below(annotation: Any, part: str | int) -> Any:
    """The type one step further down: of a field, an item, or the union's member of that kind."""
    if family := _family(annotation):
        return family[str(part)].Config
    annotation = _bare(annotation)
    if get_origin(annotation) in (dict, list):
        return get_args(annotation)[-1]
    if isinstance(annotation, type) and issubclass(annotation, Schema):
        for name, field in annotation.model_fields.items():
            if part in (name, field.alias):
                return Annotated[field.annotation, *field.metadata, None]
        return None
    for member in get_args(annotation):
        if any(isinstance(mark, Tag) and mark.tag == part for mark in getattr(member, "__metadata__", ())):
            return member
        kind = getattr(member, "model_fields", {}).get("kind")
        if (kind and part in get_args(kind.annotation)) or str(part).startswith(
            f"{getattr(get_origin(member), '__name__', '?')}["
        ):
            return member
    return None


def _bare(annotation: Any) -> Any:
    """The type without its annotations and without 'or nothing'."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    members = [member for member in get_args(annotation) if member is not type(None)]
    if get_origin(annotation) in (Union, UnionType) and len(members) == 1:
        return _bare(members[0])
    return annotation
