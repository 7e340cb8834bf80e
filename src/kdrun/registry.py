"""Components by family and kind: how a name in the YAML file becomes a class.

A component is a class with a nested pydantic ``Config`` whose ``kind: Literal[...]`` holds its names. Defining
the class registers it; nothing is ever imported because a config says so.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import InitErrorDetails

from kdrun.errors import UsageError
from kdrun.machine import raise_lack
from kdrun.schema import kind_alone


class Family:
    """All components of one family (losses, models, data sets), by kind."""

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._classes: dict[str, type[Any]] = {}

    def register(self, component: type[Any]) -> None:
        """Add a class under every name that its ``Config.kind`` allows.

        Raises ``TypeError`` where a name is taken: two classes of one name would make a config ambiguous.
        """
        for kind in get_args(component.Config.__annotations__.get("kind")) or get_args(
            component.Config.model_fields["kind"].annotation
        ):
            taken = self._classes.get(kind)
            if taken is not None and taken.__qualname__ != component.__qualname__:
                raise TypeError(f"the {self.noun} '{kind}' is defined twice: {taken} and {component}")
            self._classes[kind] = component

    def __getitem__(self, kind: str) -> type[Any]:
        return self._classes[kind]

    def __contains__(self, kind: object) -> bool:
        return kind in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def read(self, written: object) -> Any:
        """The config of a component that stands inside another's; raises ``ValidationError``, as any config does."""
        given = kind_alone(written)
        kind = given.get("kind") if isinstance(given, dict) else given
        if not isinstance(kind, str) or kind not in self:
            tags = {"discriminator": "kind", "tag": str(kind), "expected_tags": ", ".join(map(repr, self))}
            fault = "union_tag_not_found" if kind is None else "union_tag_invalid"
            wrong = [InitErrorDetails(type=fault, ctx=tags, input=given if kind is None else {"kind": kind})]
            raise ValidationError.from_exception_data(self.noun, wrong)
        try:
            return self[kind].Config.model_validate(given)
        except ValidationError as error:
            wrong = [
                InitErrorDetails(
                    type=one["type"], loc=(kind, *one["loc"]), input=one["input"], ctx=one.get("ctx", {})
                )
                for one in error.errors(include_url=False)
            ]
            raise ValidationError.from_exception_data(self.noun, wrong) from error

    def classes(self) -> list[type[Any]]:
        """The classes, each once, in the order of their first name."""
        return list(dict.fromkeys(self._classes[kind] for kind in self))


LOSSES = Family("loss")
MODELS = Family("model")
DATASETS = Family("data set")
FAMILIES = {"loss": LOSSES, "model": MODELS, "dataset": DATASETS}

loaded_plugins: set[str] = set()


def components() -> tuple[type[Any], ...]:
    """All classes that are registered by now."""
    return tuple(component for family in FAMILIES.values() for component in family.classes())


def load_plugins(modules: list[str]) -> None:
    """Import the installed plugins (entry points ``kdrun.plugins``) and the modules named by ``--plugin``.

    Raises ``UsageError`` where a module cannot be imported.
    """
    for entry in importlib.metadata.entry_points(group="kdrun.plugins"):
        with _imported(f"the installed plugin '{entry.name}'", "update it, or uninstall it"):
            entry.load()
        loaded_plugins.add(entry.name)
    for name in modules:
        here = "" if "" in sys.path else "."
        sys.path.insert(0, here)
        hint = "write the name of a Python module in this folder or of an installed package"
        try:
            with _imported(f"--plugin {name}", hint):
                importlib.import_module(name)
        finally:
            sys.path.remove(here)
        loaded_plugins.add(name)


@contextmanager
def _imported(what: str, hint: str) -> Iterator[None]:
    """Whatever a plugin's code raises is one message."""
    try:
        yield
    except Exception as error:
        raise_lack(error)
        raise UsageError(f"{what} cannot be imported: {type(error).__name__}: {error}; {hint}") from error
