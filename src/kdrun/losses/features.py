"""Losses on features, layer by layer."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdrun.contracts import Batch, Context, Loss, LossConfig, Outputs, Published, Taps
from kdrun.errors import Mismatch
from kdrun.losses.adapters import Shape, regressor, to_smaller
from kdrun.losses.matching import Pair, stage_pairs, with_layers
from kdrun.losses.numerics import fixed, full, unit
from kdrun.taps import LayerTable

FORMS = {1: "vectors (D)", 2: "token sequences (T, D)", 3: "maps (D, H, W)"}


class Hint(Loss):
    """FitNet hint: mean over all elements of (r(f_s) − f_t)²; the regressor r trains with the student.

    Taps one pair of layers of equal form. Maps (B, D, H, W): r = ReLU(BN(conv)), see ``MapRegressor``. Its
    kernel is 1 + H_s − H_t for a student's map of the same or a larger size, 3×3 with stride 2 for twice the
    size, 4×4 transposed for half; smaller by another ratio it is 3×3, and the teacher is pooled. For vectors
    (B, D) and token sequences (B, T, D) of equal T, r is linear, and left out where the widths agree.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", 2015.
    Trap: it is a mean, not a sum per sample; and a student's map more than twice as large costs a kernel of
    nearly its own size, so better name layers whose sizes are close.
    """

    class Config(LossConfig):
        """Options of ``hint``."""

        kind: Literal["hint"]
        student_layer: str | None = None
        """the student's layer; with neither layer named, the middle pair of stages (of two, the deeper)"""
        teacher_layer: str | None = None
        """the teacher's layer"""
        adapter: Literal["auto", "none", "regressor"] = "auto"
        """auto: a regressor, but for vectors and tokens of equal width; none: plain MSE; regressor: always"""

        @model_validator(mode="after")
        def _both_or_neither(self) -> Self:
            if (self.student_layer is None) != (self.teacher_layer is None):
                raise ValueError("name both 'student_layer' and 'teacher_layer', or neither")
            return self

    config: Config
    on_logits = False
    published = Published(
        losses=[{"kind": "ce", "weight": 1}, {"kind": "hint", "weight": 100}],
        source="Romero et al., FitNets: Hints for Thin Deep Nets, 2015; weights for CIFAR-100: Tian, "
        "Krishnan, Isola, Contrastive Representation Distillation, 2020",
    )
    pair: Pair
    regressor: nn.Module

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """One layer of each; raises ``Mismatch`` where their shapes cannot be reconciled."""
        teacher = with_layers(teacher, "hint")
        self.pair = ours, theirs = self._choose(student, teacher)
        self._reconcile(
            (f"layer '{ours}' of {student.owner}", student.shapes[ours]),
            (f"layer '{theirs}' of {teacher.owner}", teacher.shapes[theirs]),
        )
        return Taps((ours,), (theirs,))

    def build(self, context: Context) -> None:
        """Make the regressor."""
        assert context.teacher is not None
        ours = tuple(context.student.features[self.pair[0]].shape[1:])
        theirs = tuple(context.teacher.features[self.pair[1]].shape[1:])
        plain = self.config.adapter == "none" or (
            self.config.adapter == "auto" and ours == theirs and len(ours) < 3
        )
        self.regressor = nn.Identity() if plain else regressor(ours, theirs)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The mean squared error, ≥ 0. BatchNorm refuses a batch of one with maps of one pixel."""
        assert teacher is not None
        ours = full(self.regressor(full(student.features[self.pair[0]])))
        theirs = fixed(teacher.features[self.pair[1]])
        return F.mse_loss(*(to_smaller(ours, theirs) if ours.ndim == 4 else (ours, theirs)))

    def _choose(self, student: LayerTable, teacher: LayerTable) -> Pair:
        ours, theirs = self.config.student_layer, self.config.teacher_layer
        if ours is None or theirs is None:
            pairs = stage_pairs(student, teacher)
            return pairs[len(pairs) // 2]
        return student.resolve(ours, "student_layer"), teacher.resolve(theirs, "teacher_layer")

    def _reconcile(self, ours: tuple[str, Shape], theirs: tuple[str, Shape]) -> None:
        """Raise ``Mismatch`` where two (layer, shape) cannot be compared."""
        shapes = ours[1], theirs[1]
        forms = [FORMS.get(len(shape)) for shape in shapes]
        found = f"{ours[0]} gives {shapes[0]}, {theirs[0]} gives {shapes[1]}"
        if forms[0] != forms[1] or forms[0] is None:
            raise Mismatch(
                f"a hint compares two layers of one form, and {found}",
                f"name two layers that both give {', or both '.join(FORMS.values())}",
                "student_layer",
            )
        if len(shapes[0]) == 2 and shapes[0][0] != shapes[1][0]:
            raise Mismatch(
                f"a hint compares token by token, and {found}",
                "name layers with equal numbers of tokens, or use rkd or sp",
                "student_layer",
            )
        if self.config.adapter == "none" and shapes[0] != shapes[1]:
            raise Mismatch(
                f"without an adapter the shapes must agree, and {found}",
                "write adapter: auto, or name layers of one shape",
                "adapter",
            )


class AttentionTransfer(Loss):
    """Attention transfer: over pairs of maps, the distance of a(f) = unit(flatten(mean_c f^p)).

    mode code: Σ_layers mean over B·H·W of (a_s − a_t)²; mode paper: Σ_layers mean_b ‖a_s − a_t‖₂ (Eq. 2).
    Taps maps (B, D, H, W) of any widths, all pairs of stages by default; the larger is pooled to the smaller.

    Source: Zagoruyko, Komodakis, "Paying More Attention to Attention", 2017.
    Trap: published weights belong to the code's form, which is about ten times smaller than the paper's; for
    odd p the sign of f counts. A sample whose map is all zero keeps a zero attention and gets no gradient.
    """

    class Config(LossConfig):
        """Options of ``at``."""

        kind: Literal["at"]
        p: int = Field(default=2, ge=1, le=4)
        """power of the activations"""
        mode: Literal["code", "paper"] = "code"
        """code: mean of squares, which published weights are made for; paper: the L2 norm of each sample"""
        layers: list[Annotated[list[str], Field(min_length=2, max_length=2)]] | None = Field(
            default=None, min_length=1
        )
        """pairs [student's layer, teacher's layer]; all pairs of stages where nothing is said"""

    config: Config
    on_logits = False
    published = Published(
        losses=[{"kind": "ce", "weight": 1}, {"kind": "at", "weight": 1000}],
        source="Zagoruyko, Komodakis, Paying More Attention to Attention, 2017; weights for CIFAR-100: Tian, "
        "Krishnan, Isola, Contrastive Representation Distillation, 2020",
    )
    pairs: list[Pair]

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """All pairs; raises ``Mismatch`` where one is no map."""
        teacher = with_layers(teacher, "at")
        if self.config.layers is None:
            self.pairs = stage_pairs(student, teacher)
        else:
            self.pairs = [
                (student.resolve(s, "layers"), teacher.resolve(t, "layers")) for s, t in self.config.layers
            ]
        ours, theirs = zip(*self.pairs, strict=True)
        _require_maps(student, ours)
        _require_maps(teacher, theirs)
        return Taps(ours, theirs)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The sum over pairs, ≥ 0."""
        assert teacher is not None
        terms = [self._distance(student.features[s], teacher.features[t]) for s, t in self.pairs]
        return torch.stack(terms).sum()

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        ours, theirs = (self._attention(f) for f in to_smaller(full(student), fixed(teacher)))
        if self.config.mode == "code":
            return F.mse_loss(ours, theirs)
        return torch.linalg.vector_norm(ours - theirs, dim=1).mean()

    def _attention(self, features: Tensor) -> Tensor:
        return unit(features.pow(self.config.p).mean(dim=1).flatten(1))


def _require_maps(table: LayerTable, layers: tuple[str, ...]) -> None:
    """Raise ``Mismatch`` at the first layer that gives no maps."""
    for layer in layers:
        if len(shape := table.shapes[layer]) != 3:
            raise Mismatch(
                f"'at' compares maps (D, H, W), and layer '{layer}' of {table.owner} gives {shape}",
                "use hint, rkd or sp, which compare vectors too, or name layers that give maps",
                "layers",
            )
