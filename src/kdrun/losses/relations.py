"""Losses on the relations between the samples of a batch, whatever the widths of student and teacher."""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kdrun.contracts import Batch, Loss, LossConfig, Outputs, Published, Taps
from kdrun.losses.matching import Pair, chosen_layer, last_stage, with_layers
from kdrun.losses.numerics import exact, fixed, full, unit
from kdrun.taps import LayerTable

CHUNK = 2**20
"""Elements of the largest tensor that the angles of a batch may need at a time."""


class SimilarityPreserving(Loss):
    """Similarity-preserving distillation: ‖N(F_s F_sᵀ) − N(F_t F_tᵀ)‖²_F / B².

    F (B, ·) is the flattened output of one layer, the last stage by default; N divides each row by its L2
    norm. A batch of one has no relations and gives 0.

    Source: Tung, Mori, "Similarity-Preserving Knowledge Distillation", 2019.
    Trap: rows are normalised after the product, and by L2; with L1 rows the loss is several times smaller.
    """

    class Config(LossConfig):
        """Options of ``sp``."""

        kind: Literal["sp"]
        student_layer: str | None = None
        """the student's layer; its last stage where nothing is said"""
        teacher_layer: str | None = None
        """the teacher's layer; its last stage where nothing is said"""

    config: Config
    on_logits = False
    published = Published(
        losses=[{"kind": "ce", "weight": 1}, {"kind": "sp", "weight": 3000}],
        source="Tung, Mori, Similarity-Preserving Knowledge Distillation, 2019",
    )
    pair: Pair

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """One layer of each, of any shape."""
        teacher = with_layers(teacher, "sp")
        ours = chosen_layer(student, self.config.student_layer, last_stage(student), "student_layer")
        theirs = chosen_layer(teacher, self.config.teacher_layer, last_stage(teacher), "teacher_layer")
        self.pair = ours, theirs
        return Taps((ours,), (theirs,))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The squared distance, ≥ 0."""
        ours, theirs = _embeddings(self.pair, student, teacher)
        with exact(ours):
            return F.mse_loss(unit(ours @ ours.T), unit(theirs @ theirs.T))


class RelationalKD(Loss):
    """Relational distillation: distance · L_D + angle · L_A, both smooth-L1 over all tuples of the batch.

    L_D compares the B² Euclidean distances, each divided by the mean distance; L_A the B³ cosines of the
    angles that two samples make at a third. Taps one layer, flattened to (B, ·), the embedding before the
    classifier by default. Below three samples there is nothing to compare, and the loss is 0.

    Source: Park et al., "Relational Knowledge Distillation", 2019.
    Trap: means include the diagonal. The cosines would take several times B³ floats (67 MB each at B = 256);
    they are computed some anchors at a time, and again in the backward pass.
    """

    class Config(LossConfig):
        """Options of ``rkd``."""

        kind: Literal["rkd"]
        distance: float = Field(default=25.0, ge=0)
        """factor of the distances"""
        angle: float = Field(default=50.0, ge=0)
        """factor of the angles"""
        student_layer: str | None = None
        """the student's layer; its embedding where nothing is said"""
        teacher_layer: str | None = None
        """the teacher's layer; its embedding where nothing is said"""

        @model_validator(mode="after")
        def _not_nothing(self) -> Self:
            if not self.distance and not self.angle:
                raise ValueError("'distance' or 'angle' must be above 0")
            return self

    config: Config
    on_logits = False
    published = Published(
        losses=[{"kind": "ce", "weight": 1}, {"kind": "rkd", "weight": 1, "distance": 25, "angle": 50}],
        source="Park et al., Relational Knowledge Distillation, 2019; weights for CIFAR-100: Tian, Krishnan, "
        "Isola, Contrastive Representation Distillation, 2020",
    )
    pair: Pair

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """One layer of each, of any shape."""
        teacher = with_layers(teacher, "rkd")
        ours = chosen_layer(student, self.config.student_layer, student.pooled, "student_layer")
        theirs = chosen_layer(teacher, self.config.teacher_layer, teacher.pooled, "teacher_layer")
        self.pair = ours, theirs
        return Taps((ours,), (theirs,))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The weighted sum of both, ≥ 0."""
        ours, theirs = _embeddings(self.pair, student, teacher)
        parts = ((self.config.distance, distance_loss), (self.config.angle, angle_loss))
        with exact(ours):
            return torch.stack([factor * loss(ours, theirs) for factor, loss in parts if factor]).sum()


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth-L1 between the relative distances of two sets of vectors (B, ·), mean over B²."""
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth-L1 between the cosines at every sample of two sets of vectors (B, ·), mean over B³.

    Memory stays within some ``CHUNK``s: the anchors are taken in slices, recomputed in the backward pass.
    """
    size, teacher = len(student), _coordinates(teacher)
    step = max(1, CHUNK // (size * max(size, student.shape[1], teacher.shape[1])))
    sums = [
        checkpoint(
            _angle_sum, student, teacher, slice(i, i + step), use_reentrant=False, preserve_rng_state=False
        )
        for i in range(0, size, step)
    ]
    return torch.stack(sums).sum() / size**3


def _coordinates(x: Tensor) -> Tensor:
    """Constant vectors (B, D), where D > B in an orthonormal basis of their span: no angle or distance changes.

    A wide teacher then costs as much as one of width B. Apple's GPUs lack the float64 that keeps this exact.
    """
    if x.shape[1] <= len(x) or x.device.type == "mps":
        return x
    return torch.linalg.qr(x.double().T, mode="r").R.T.to(x.dtype)


def _relative_distances(x: Tensor) -> Tensor:
    """Euclidean distances (B, B), divided by their mean over pairs of different samples."""
    x = x - x.mean(dim=0)  # moves no distance, but keeps the rounding of the differences of squares small
    squares = x.square().sum(dim=1)
    distances = (squares[:, None] + squares - 2 * x @ x.T).clamp_min(1e-12).sqrt()
    distances = distances.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0)
    mean = distances.sum() / max(1, len(x) * (len(x) - 1))
    return distances / mean.clamp_min(1e-12)


def _angle_sum(student: Tensor, teacher: Tensor, anchors: slice) -> Tensor:
    return F.smooth_l1_loss(_cosines(student, anchors), _cosines(teacher, anchors), reduction="sum")


def _cosines(x: Tensor, anchors: slice) -> Tensor:
    """Cosines (A, B, B) between the directions from each anchor to every two samples."""
    directions = unit(x - x[anchors, None])
    return directions @ directions.mT


def _embeddings(pair: Pair, student: Outputs, teacher: Outputs | None) -> tuple[Tensor, Tensor]:
    """Both layers' outputs as vectors (B, ·)."""
    assert teacher is not None
    return full(student.features[pair[0]]).flatten(1), fixed(teacher.features[pair[1]]).flatten(1)
