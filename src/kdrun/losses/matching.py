"""Which layer of the student is compared with which of the teacher."""

from __future__ import annotations

from kdrun.errors import Mismatch
from kdrun.taps import LayerTable

Pair = tuple[str, str]
"""A layer of the student and a layer of the teacher."""


def with_layers(teacher: LayerTable | None, kind: str) -> LayerTable:
    """The teacher's layers; raises ``Mismatch`` where it is no network and has none."""
    if teacher is None:
        raise Mismatch(
            f"'{kind}' compares layers, and this teacher has none",
            "use kd, hard or logit-mse, which see its logits only, or a teacher that is a network",
            "teacher",
        )
    return teacher


def stage_pairs(student: LayerTable, teacher: LayerTable) -> list[Pair]:
    """Stages to compare, shallow to deep.

    Stages are paired by equal spatial size, the last of each size; where no sizes meet, or the stages are no
    maps, they are counted off from the deep end. Raises ``Mismatch`` where a model names no stages.
    """
    for table in (student, teacher):
        if not table.stages:
            raise Mismatch(
                f"{table.owner} does not say which of its layers are stages",
                f"name the layers to compare; layers: {', '.join(table.shapes)}",
            )
    ours, theirs = _by_size(student), _by_size(teacher)
    if meeting := [(ours[size], theirs[size]) for size in ours if size in theirs]:
        return meeting
    depth = min(len(student.stages), len(teacher.stages))
    return list(zip(student.stages[-depth:], teacher.stages[-depth:], strict=True))


def chosen_layer(table: LayerTable, layer: str | None, default: str | None, key: str) -> str:
    """The layer that the config names under ``key``, else the ``default``.

    Raises ``Mismatch`` where there is no such layer, or nothing is named and the model has no default.
    """
    if layer is not None:
        return table.resolve(layer, key)
    if not default:
        raise Mismatch(
            f"{table.owner} does not say which layer is to be compared",
            f"name one as '{key}'; layers: {', '.join(table.shapes)}",
            key,
        )
    return default


def last_stage(table: LayerTable) -> str | None:
    """The deepest stage, if the model names any."""
    return table.stages[-1] if table.stages else None


def _by_size(table: LayerTable) -> dict[tuple[int, ...], str]:
    """The last stage of each spatial size (H, W)."""
    return {table.shapes[name][1:]: name for name in table.stages if len(table.shapes[name]) == 3}
