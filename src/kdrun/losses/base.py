"""What losses of one form share: on logits, on one layer of each network, on all pairs of stages."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdrun.contracts import HIDDEN, Batch, Context, Loss, LossConfig, Outputs, Taps
from kdrun.errors import Mismatch
from kdrun.losses.adapters import to_smaller
from kdrun.losses.matching import (
    FORMS,
    Pair,
    as_maps,
    chosen_layer,
    last_stage,
    named_pairs,
    stage_pairs,
    with_layers,
)
from kdrun.losses.numerics import bounded, exact, fixed, full, z_scores
from kdrun.taps import LayerTable

# ------------------------------------------------------------------------------------------- logits


Temperature = Annotated[float, Field(gt=0, le=10_000)]
"""Far above what softens anything, and its square is a number."""


class LogitConfig(LossConfig):
    """Options of every loss that compares logits."""

    logit_standardization: bool = False
    """take the z-scores of each sample's logits first, the student's and the teacher's (Sun et al., 2024)"""


class OnLogits(Loss):
    """What losses on the logits of student and teacher, both (B, C), have in common."""

    config: LogitConfig

    def target(self, teacher: Outputs | None, batch: Batch) -> Tensor | None:
        """The teacher's softmax at the loss's temperature (B, C)."""
        return F.softmax(self.given(teacher) / self.temperature, dim=-1)

    def given(self, teacher: Outputs | None) -> Tensor:
        """The teacher's logits as the loss sees them."""
        assert teacher is not None
        return self.seen(bounded(teacher.logits))

    def seen(self, logits: Tensor) -> Tensor:
        """Logits (B, C), or their z-scores."""
        return z_scores(logits) if self.config.logit_standardization else logits


class LogitLoss(OnLogits):
    """A loss that is one divergence of the student's logits from the teacher's, in float32 or better."""

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The divergence, on z-scores if the config asks for them."""
        with exact(student.logits):
            return self.divergence(self.seen(full(student.logits)), self.given(teacher), batch)

    @abstractmethod
    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The scalar, of logits (B, C); the teacher's carry no gradient."""


def main_classes(batch: Batch, teacher: Tensor) -> Tensor:
    """The class (B,) of each sample: its label, under mixup that of the larger share; hidden, the teacher's choice."""
    if batch.all_seen:
        return batch.main_labels
    return torch.where(batch.main_labels == HIDDEN, teacher.argmax(dim=-1), batch.main_labels)


# ------------------------------------------------------------------------------------------- layers


class LayerConfig(LossConfig):
    """Options of every loss that compares one layer of each."""

    student_layer: str | None = None
    """the student's layer; the loss's own text says which is taken where nothing is said"""
    teacher_layer: str | None = None
    """the teacher's layer"""


DIMENSIONS = {"maps": (3,), "maps or vectors": (1, 3), "vectors": (1, 2, 3)}
"""How many dimensions a layer may have, by the form that a loss needs."""


class OnLayer(Loss):
    """What losses on one layer of the student and one of the teacher have in common.

    ``default`` says which layer is taken where none is named; ``form`` what the layers must give: maps, maps or
    vectors, or anything, which is flattened to vectors (B, ·). ``pools`` averages the larger map down to the smaller;
    ``compares_places`` refuses maps of one pixel. ``adapter`` and ``teacher_adapter`` leave the layers as they are
    where ``build`` makes no others.
    """

    on_logits = False
    default: ClassVar[Literal["embedding", "last stage"]] = "embedding"
    form: ClassVar[Literal["vectors", "maps", "maps or vectors"]] = "vectors"
    pools: ClassVar[bool] = False
    compares_places: ClassVar[bool] = False
    config: LayerConfig
    pair: Pair

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config)
        self.adapter: nn.Module = nn.Identity()
        self.teacher_adapter: nn.Module = nn.Identity()

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """One layer of each; raises ``Mismatch`` where one gives no maps and must."""
        teacher = with_layers(teacher, self.config.kind)
        ours = chosen_layer(student, self.config.student_layer, self.default_layer(student), "student_layer")
        theirs = chosen_layer(
            teacher, self.config.teacher_layer, self.default_layer(teacher), "teacher_layer"
        )
        if 2 not in DIMENSIONS[self.form]:
            ours, theirs = student.as_map(ours), teacher.as_map(theirs)
        both = ((student, ours), (teacher, theirs))
        for (table, layer), key in zip(both, ("student_layer", "teacher_layer"), strict=True):
            if len(table.shapes[layer]) not in DIMENSIONS[self.form]:
                require_maps(self.config.kind, key, *both)
            if self.compares_places:
                require_places(self.config.kind, table, layer, key)
        self.pair = ours, theirs
        return Taps((ours,), (theirs,))

    def layers(self, student: Outputs, teacher: Outputs | None) -> tuple[Tensor, Tensor]:
        """Both layers' outputs, in float32 or better, the teacher's without a gradient."""
        assert teacher is not None
        ours, theirs = full(student.features[self.pair[0]]), fixed(teacher.features[self.pair[1]])
        return (ours.flatten(1), theirs.flatten(1)) if self.form == "vectors" else (ours, theirs)

    def shapes(self, context: Context) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes that ``layers`` gives, without the batch."""
        ours, theirs = self.layers(context.student, context.teacher)
        return tuple(ours.shape[1:]), tuple(theirs.shape[1:])

    def default_layer(self, table: LayerTable) -> str | None:
        """The layer that is taken where none is named."""
        return table.pooled if self.default == "embedding" else last_stage(table)


class LayerLoss(OnLayer):
    """A loss that is one distance of the student's adapted layer from the teacher's."""

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The distance, in float32 or better."""
        ours, theirs = self.layers(student, teacher)
        if self.pools:
            ours, theirs = to_smaller(ours, theirs)
        ours, theirs = full(self.adapter(ours)), full(self.teacher_adapter(theirs))
        with exact(ours):
            return self.distance(ours, theirs, batch)

    @abstractmethod
    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The scalar, of adapted features."""


# ------------------------------------------------------------------------------------------- stages

LayerPairs = Annotated[list[Annotated[list[str], Field(min_length=2, max_length=2)]], Field(min_length=1)]


class StagesConfig(LossConfig):
    """Options of every loss that compares several pairs of layers."""

    layers: LayerPairs | None = None
    """pairs [student's layer, teacher's layer], shallow to deep; all pairs of stages where nothing is said"""


class OnStages(Loss):
    """A loss on pairs of maps (B, D, H, W), or tokens whose places are known, shallow to deep, taken together.

    ``before_relu`` takes each stage before its last ReLU; ``same_size`` and ``same_width`` refuse pairs that
    differ there; ``pools`` averages the larger map down to the smaller; ``compares_places`` leaves stages of one pixel
    out, and refuses them where they are named. ``adapters``, one a pair, are made by ``adapter`` where a loss has them.
    """

    on_logits = False
    before_relu: ClassVar[bool] = False
    same_size: ClassVar[bool] = False
    same_width: ClassVar[bool] = False
    pools: ClassVar[bool] = True
    compares_places: ClassVar[bool] = False
    config: StagesConfig
    pairs: list[Pair]

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """All pairs; raises ``Mismatch`` where one is no map, or two of one pair do not fit."""
        teacher = with_layers(teacher, self.config.kind)
        if self.config.layers is None:
            pairs = as_maps(stage_pairs(student, teacher, self.before_relu), student, teacher)
            spread = [p for p in pairs if has_places(student, p[0]) and has_places(teacher, p[1])]
            self.pairs = spread if spread and self.compares_places else pairs
        else:
            named = named_pairs(self.config.layers, student, teacher, (self.before_relu,) * 2)
            self.pairs = as_maps(named, student, teacher)
        for ours, theirs in self.pairs:
            self.check((student, ours), (teacher, theirs))
        ours_all, theirs_all = zip(*self.pairs, strict=True)
        return Taps(ours_all, theirs_all)

    def check(self, ours: tuple[LayerTable, str], theirs: tuple[LayerTable, str]) -> None:
        """Raise ``Mismatch`` where two layers cannot be compared."""
        require_maps(self.config.kind, "layers", ours, theirs)
        if self.compares_places:
            for table, layer in (ours, theirs):
                require_places(self.config.kind, table, layer, "layers")
        shapes = [table.shapes[layer] for table, layer in (ours, theirs)]
        same = [shape[1:] if self.same_size else () for shape in shapes]
        widths = [shape[0] if self.same_width else 0 for shape in shapes]
        if same[0] != same[1] or widths[0] != widths[1]:
            what = " and ".join(
                [*(["widths"] if self.same_width else []), *(["sizes"] if self.same_size else [])]
            )
            raise Mismatch(
                f"'{self.config.kind}' needs equal {what}, and {said_of(*ours)}, {said_of(*theirs)}",
                "name other pairs as 'layers', or use at, sp or rkd, which compare any maps",
                "layers",
            )

    def build(self, context: Context) -> None:
        """Make the adapters, one a pair."""
        assert context.teacher is not None
        self.adapters = nn.ModuleList(
            self.adapter(
                tuple(context.student.features[s].shape[1:]), tuple(context.teacher.features[t].shape[1:])
            )
            for s, t in self.pairs
        )

    def adapter(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module:
        """What brings a map of the student to the teacher's form."""
        return nn.Identity()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The total, in float32 or better."""
        assert teacher is not None
        pairs = []
        for (s, t), adapter in zip(self.pairs, self.adapters, strict=True):
            ours, theirs = full(student.features[s]), fixed(teacher.features[t])
            ours, theirs = to_smaller(ours, theirs) if self.pools else (ours, theirs)
            pairs.append((full(adapter(ours)), theirs))
        with exact(pairs[0][0]):
            return self.total(pairs)

    @abstractmethod
    def total(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The scalar, of all pairs of adapted maps."""


class StagesLoss(OnStages):
    """A loss that is a sum of distances, one for each pair of maps."""

    def total(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The sum over pairs."""
        return torch.stack([self.distance(ours, theirs) for ours, theirs in pairs]).sum()

    @abstractmethod
    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The scalar of one pair."""


def said_of(table: LayerTable, layer: str) -> str:
    """A layer and its shape in words."""
    return f"layer '{layer}' of {table.owner} gives {table.shapes[layer]}"


def has_maps(table: LayerTable) -> bool:
    """Whether the last stage gives maps."""
    return bool(table.stages) and len(table.shapes[table.stages[-1]]) == 3


def has_places(table: LayerTable, layer: str) -> bool:
    """Whether a layer gives maps of more than one pixel."""
    return len(table.shapes[layer]) == 3 and table.shapes[layer][1:] != (1, 1)


def require_places(kind: str, table: LayerTable, layer: str, key: str) -> None:
    """Raise ``Mismatch`` where a layer gives maps of one pixel."""
    if not has_places(table, layer):
        raise Mismatch(
            f"'{kind}' compares the positions of a map, and {said_of(table, layer)}",
            "name layers that give larger maps",
            key,
        )


def require_maps(kind: str, key: str, *layers: tuple[LayerTable, str]) -> None:
    """Raise ``Mismatch`` where one of the layers gives no maps."""
    if any(len(table.shapes[layer]) != 3 for table, layer in layers):
        raise Mismatch(
            f"'{kind}' compares {FORMS[3]}, and {', '.join(said_of(*layer) for layer in layers)}",
            "use hint, rkd or sp, which compare vectors too, or name layers that give maps",
            key,
        )
