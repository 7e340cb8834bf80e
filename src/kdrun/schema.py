"""The base of every part of the config, and what its parts share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveInt, Tag


class Schema(BaseModel):
    """Base of every part of the config: unknown keys are errors, and nothing is converted silently."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def kind_alone(value: object) -> object:
    """Where only the kind is said, the name alone will do: ``adamw`` is short for ``{kind: adamw}``."""
    return {"kind": value} if isinstance(value, str) else value


def form(value: object) -> str:
    """Whether an option was written as a list or as one value, so that errors speak of that form only."""
    return "many" if isinstance(value, list) else "one"


Sides = Annotated[
    Annotated[PositiveInt, Tag("one")]
    | Annotated[list[PositiveInt], Field(min_length=2, max_length=2), Tag("many")],
    Discriminator(form),
]
"""Height and width in pixels, of squares one number."""


def sides(written: int | list[int]) -> tuple[int, int]:
    """Height and width."""
    height, width = written if isinstance(written, list) else [written] * 2
    return height, width


def as_list(value: str | list[str] | None) -> list[str]:
    """One name, several or none, as a list."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)
