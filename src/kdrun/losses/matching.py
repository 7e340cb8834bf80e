"""Which layer of the student is compared with which of the teacher."""

from __future__ import annotations

from kdrun.errors import Mismatch
from kdrun.taps import LayerTable

Pair = tuple[str, str]
"""A layer of the student and a layer of the teacher."""
FORMS = {1: "vectors (D)", 2: "token sequences (T, D)", 3: "maps (D, H, W)"}
"""What a layer gives for each sample, by its number of dimensions."""


def with_layers(teacher: LayerTable | None, kind: str) -> LayerTable:
    """The teacher's layers; raises ``Mismatch`` where it is no network and has none."""
    if teacher is None or not teacher.shapes:
        raise Mismatch(
            f"'{kind}' compares layers, and {teacher.owner if teacher else 'this teacher'} has none",
            "use kd, dkd or dist, which see its logits only, or a teacher that is a network",
            "teacher",
        )
    return teacher


def stage_pairs(student: LayerTable, teacher: LayerTable, before_relu: bool = False) -> list[Pair]:
    """Stages to compare, shallow to deep; with ``before_relu`` the layers before their last ReLUs.

    Stages are paired by equal spatial size, the last of each size; where no sizes meet, or the stages are no
    maps, they are counted off from the deep end. Raises ``Mismatch`` where a model names no such layers.
    """
    names = [stages_of(table, before_relu) for table in (student, teacher)]
    ours, theirs = (_by_size(table, n) for table, n in zip((student, teacher), names, strict=True))
    if meeting := [(ours[size], theirs[size]) for size in ours if size in theirs]:
        return meeting
    depth = min(len(n) for n in names)
    return list(zip(names[0][-depth:], names[1][-depth:], strict=True))


def deep_pairs(student: LayerTable, teacher: LayerTable, before_relu: bool = False) -> list[Pair]:
    """As many stages as both have, counted off from the deep end.

    With ``before_relu`` the teacher's are taken before their last ReLUs.
    """
    ours, theirs = stages_of(student), stages_of(teacher, before_relu)
    depth = min(len(ours), len(theirs))
    return list(zip(ours[-depth:], theirs[-depth:], strict=True))


def named_pairs(
    layers: list[list[str]],
    student: LayerTable,
    teacher: LayerTable,
    before_relu: tuple[bool, bool] = (False, False),
) -> list[Pair]:
    """The pairs that a config names, by full names; of student or teacher each stage before its last ReLU."""
    tables = (student, teacher)
    return [(_named(tables[0], s, before_relu[0]), _named(tables[1], t, before_relu[1])) for s, t in layers]


def _named(table: LayerTable, layer: str, before_relu: bool) -> str:
    name = table.resolve(layer, "layers")
    if before_relu and table.preactivations and name in table.stages:
        return table.preactivations[table.stages.index(name)]
    return name


def stages_of(table: LayerTable, before_relu: bool = False) -> tuple[str, ...]:
    """The model's stages, or the layers before their last ReLUs; raises ``Mismatch`` where it names none."""
    names = table.preactivations if before_relu else table.stages
    if not names:
        what = (
            "gives no names for what its stages' last ReLUs get"
            if before_relu
            else ("does not say which of its layers are stages")
        )
        raise Mismatch(f"{table.owner} {what}", f"name the layers to compare; layers: {', '.join(table.own)}")
    return names


def as_maps(pairs: list[Pair], student: LayerTable, teacher: LayerTable) -> list[Pair]:
    """The pairs, with maps in the place of token sequences where these can be laid out."""
    return [(student.as_map(s), teacher.as_map(t)) for s, t in pairs]


def of_one_form(pair: Pair, student: LayerTable, teacher: LayerTable) -> Pair:
    """Two layers, or where they give different forms, or sequences of unequal length, what is made of them.

    That is maps, where it can be, or else the means over tokens and places, which are vectors.
    """
    ours, theirs = (table.shapes[layer] for table, layer in zip((student, teacher), pair, strict=True))
    if len(ours) == len(theirs) and (len(ours) != 2 or ours[0] == theirs[0]):
        return pair
    maps = student.as_map(pair[0]), teacher.as_map(pair[1])
    if len(student.shapes[maps[0]]) == len(teacher.shapes[maps[1]]) == 3:
        return maps
    return student.as_mean(pair[0]), teacher.as_mean(pair[1])


def chosen_layer(table: LayerTable, layer: str | None, default: str | None, key: str) -> str:
    """The layer that the config names under ``key``, else the ``default``.

    Raises ``Mismatch`` where there is no such layer, or nothing is named and the model has no default.
    """
    if layer is not None:
        return table.resolve(layer, key)
    if not default:
        raise Mismatch(
            f"{table.owner} does not say which layer is to be compared",
            f"name one as '{key}'; layers: {', '.join(table.own)}",
            key,
        )
    return default


def last_stage(table: LayerTable) -> str | None:
    """The deepest stage, if the model names any."""
    return table.stages[-1] if table.stages else None


def _by_size(table: LayerTable, names: tuple[str, ...]) -> dict[tuple[int, ...], str]:
    """The last of these layers of each spatial size (H, W)."""
    return {table.shapes[name][1:]: name for name in names if len(table.shapes[name]) == 3}
