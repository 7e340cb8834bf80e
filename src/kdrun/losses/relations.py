"""Losses on the relations between the samples of a batch, whatever the widths of student and teacher."""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kdrun.contracts import Batch, Context, Outputs, Published, Taps
from kdrun.errors import Mismatch
from kdrun.losses.adapters import Embedding
from kdrun.losses.base import LayerConfig, LayerLoss, LayerPairs, OnLayer
from kdrun.losses.matching import Pair, with_layers
from kdrun.losses.numerics import distances, exact, fixed, full, squared_distances, unit
from kdrun.losses.recipes import CRD
from kdrun.taps import LayerTable

CHUNK = 2**20
"""Elements of the largest tensor that the angles of a batch may need at a time."""


class SimilarityPreserving(LayerLoss):
    """Similarity-preserving distillation: ‖N(F_s F_sᵀ) − N(F_t F_tᵀ)‖²_F / B².

    F (B, ·) is the flattened output of one layer, the last stage by default; N divides each row by its L2
    norm. A batch of one has no relations and gives 0.

    Source: Tung, Mori, "Similarity-Preserving Knowledge Distillation", 2019.
    Trap: rows are normalised after the product, and by L2; with L1 rows the loss is several times smaller.
    """

    class Config(LayerConfig):
        """Options of ``sp``."""

        kind: Literal["sp"]

    config: Config
    default = "last stage"
    published = {
        "sp": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "sp", "weight": 3000}],
            source="Tung, Mori, Similarity-Preserving Knowledge Distillation, 2019",
        )
    }

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The squared distance, ≥ 0."""
        return F.mse_loss(unit(student @ student.T), unit(teacher @ teacher.T))


class RelationalKD(LayerLoss):
    """Relational distillation: distance · L_D + angle · L_A, both smooth-L1 over all tuples of the batch.

    L_D compares the B² Euclidean distances, each divided by the mean distance; L_A the B³ cosines of the
    angles that two samples make at a third. Taps one layer, flattened to (B, ·), the embedding before the
    classifier by default. Below three samples there is nothing to compare, and the loss is 0.

    Source: Park et al., "Relational Knowledge Distillation", 2019.
    Trap: means include the diagonal. The cosines would take several times B³ floats (67 MB each at B = 256);
    they are computed some anchors at a time, and again in the backward pass.
    """

    class Config(LayerConfig):
        """Options of ``rkd``."""

        kind: Literal["rkd"]
        distance: float = Field(default=25.0, ge=0)
        """factor of the distances"""
        angle: float = Field(default=50.0, ge=0)
        """factor of the angles"""

        @model_validator(mode="after")
        def _not_nothing(self) -> Self:
            if not self.distance and not self.angle:
                raise ValueError("'distance' or 'angle' must be above 0")
            return self

    config: Config
    published = {
        "rkd": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "rkd", "weight": 1, "distance": 25, "angle": 50}],
            source=f"Park et al., Relational Knowledge Distillation, 2019; weights for CIFAR-100: {CRD}",
        )
    }

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The weighted sum of both, ≥ 0."""
        parts = ((self.config.distance, _distance_loss), (self.config.angle, _angle_loss))
        return torch.stack([factor * loss(student, teacher) for factor, loss in parts if factor]).sum()


def _distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth-L1 between the relative distances of two sets of vectors (B, ·), mean over B²."""
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def _angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth-L1 between the cosines at every sample of two sets of vectors (B, ·), mean over B³.

    Memory stays within some ``CHUNK``s: the anchors are taken in slices, if there are several recomputed in the
    backward pass.
    """
    size, teacher = len(student), _coordinates(teacher)
    step = max(1, CHUNK // (size * max(size, student.shape[1], teacher.shape[1])))
    if step >= size:
        return _angle_sum(student, teacher, slice(size)) / size**3
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
    apart = distances(x)
    mean = apart.sum() / max(1, len(x) * (len(x) - 1))
    return apart / mean.clamp_min(1e-12)


def _angle_sum(student: Tensor, teacher: Tensor, anchors: slice) -> Tensor:
    return F.smooth_l1_loss(_cosines(student, anchors), _cosines(teacher, anchors), reduction="sum")


def _cosines(x: Tensor, anchors: slice) -> Tensor:
    """Cosines (A, B, B) between the directions from each anchor to every two samples."""
    directions = unit(x - x[anchors, None])
    return directions @ directions.mT


class ProbabilisticTransfer(LayerLoss):
    """Probabilistic knowledge transfer: mean over B² of p_t log((p_t + 1e-7) / (p_s + 1e-7)).

    p (B, B) are the cosines c of all pairs of samples as (c + 1)/2, each row divided by its sum, the diagonal
    included. Taps one layer of each, flattened to (B, ·), the embedding by default.

    Source: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", 2018.
    Trap: a mean over B², so the weight is large.
    """

    EPSILON = 1e-7

    class Config(LayerConfig):
        """Options of ``pkt``."""

        kind: Literal["pkt"]

    config: Config
    published = {
        "pkt": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "pkt", "weight": 30000}],
            source="Passalis, Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, 2018; "
            f"weights for CIFAR-100: {CRD}",
        )
    }

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The divergence; 0 at student = teacher."""
        ours, theirs = self._probabilities(student), self._probabilities(teacher)
        return (theirs * torch.log((theirs + self.EPSILON) / (ours + self.EPSILON))).mean()

    def _probabilities(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        x = x / (length + self.EPSILON).masked_fill(length == 0, torch.inf)
        similar = ((x @ x.T + 1) / 2).clamp_min(0)  # cosines are rounded to less than −1
        return similar / similar.sum(dim=1, keepdim=True)


class CorrelationCongruence(LayerLoss):
    """Correlation congruence: mean over B² of (K(s) − K(t))², K the kernel of all pairs of samples.

    mode paper: rows of unit length, K(x, y) = exp(−2g) Σ_{p ≤ P} (2g)ᵖ/p! · (x·y)ᵖ, a Gaussian's Taylor series.
    mode code: mean over neighbours b, b + 1 in the batch of Σ_d |e_b,d|·|e_b+1,d|, e = E_s s − E_t t, with linear
    embeddings E to `width` numbers that are both trained. Taps one layer of each, flattened to (B, ·), the embedding
    by default.

    Source: Peng et al., "Correlation Congruence for Knowledge Distillation", 2019; mode code: the code of
    Contrastive Representation Distillation, 2020, whose weight and results are the ones that are cited.
    Trap: mode code depends on the order of the batch and is not the paper's formula; it gives 0 for a batch of one.
    """

    class Config(LayerConfig):
        """Options of ``cc``."""

        kind: Literal["cc"]
        mode: Literal["paper", "code"] = "paper"
        """paper: the kernel; code: products of neighbours, which the published weight is made for"""
        gamma: float = Field(default=0.4, gt=0)
        """paper: g, the kernel's narrowness"""
        order: int = Field(default=2, ge=1, le=8)
        """paper: P, the highest power"""
        width: int = Field(default=128, ge=1)
        """code: numbers of an embedding"""

    config: Config
    published = {
        "cc": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "cc", "weight": 0.02, "mode": "code"}],
            source="Peng et al., Correlation Congruence for Knowledge Distillation, 2019; weights for CIFAR-100: "
            f"{CRD}",
        )
    }

    def build(self, context: Context) -> None:
        """Make the embeddings of mode code."""
        if self.config.mode == "code":
            both = (nn.Linear(size, self.config.width) for (size,) in self.shapes(context))
            self.adapter, self.teacher_adapter = both

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The mean, ≥ 0."""
        if self.config.mode == "paper":
            return F.mse_loss(self._kernel(student), self._kernel(teacher))
        delta = (student - teacher).abs()
        return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)

    def _kernel(self, x: Tensor) -> Tensor:
        g, cosines = 2 * self.config.gamma, unit(x) @ unit(x).T
        terms = [g**p / math.factorial(p) * cosines**p for p in range(self.config.order + 1)]
        return math.exp(-g) * torch.stack(terms).sum(dim=0)


class RelationGraph(LayerLoss):
    """Instance relationship graph: `graph`·(edges + vertices) + `transform`·Σ (edges' change + vertices' change).

    Edges are the B² squared distances between samples, divided by the largest, compared by mean squared error;
    vertices are the vectors themselves, compared where their widths agree. Taps one layer of each, flattened to
    (B, ·), the embedding by default. The change from one layer to another of the same network is one number, the mean
    squared error between their edges (or, where their shapes agree, their maps); that of the student is compared with
    that of the teacher.

    Source: Liu et al., "Knowledge Distillation via Instance Relationship Graph", 2019; code: the port of Chen et al.,
    2021, for the authors' is for Caffe.
    Trap: a port, not the paper's definition; the published mix has no change of layers.
    """

    class Config(LayerConfig):
        """Options of ``irg``."""

        kind: Literal["irg"]
        graph: float = Field(default=1.0, ge=0)
        """factor of edges and vertices"""
        transform: float = Field(default=1.0, ge=0)
        """factor of the changes from layer to layer"""
        edge_transform: bool = True
        """compare the change of the edges, too"""
        changes: list[LayerPairs] = []
        """changes to compare: [[student's layer, teacher's layer], [student's next, teacher's next]] for each"""

        @model_validator(mode="after")
        def _in_twos(self) -> Self:
            if any(len(change) != 2 for change in self.changes):
                raise ValueError("a change goes from one pair of layers to another: write two pairs")
            if not self.graph and not (self.transform and self.changes):
                raise ValueError("'graph' must be above 0, or 'transform' with some 'changes'")
            return self

    config: Config
    published = {
        "irg": Published(
            losses=[
                {"kind": "ce", "weight": 1},
                {"kind": "kd", "weight": 1, "temperature": 4},
                {"kind": "irg", "weight": 0.005},
            ],
            source="Liu et al., Knowledge Distillation via Instance Relationship Graph, 2019; weights for CIFAR-100: "
            "Chen et al., Cross-Layer Distillation with Semantic Calibration, 2021",
        )
    }
    changes: list[tuple[Pair, Pair]]

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """The vertices' layer and those of the changes."""
        taps = super().taps(student, teacher)
        teacher = with_layers(teacher, "irg")
        self.changes = []
        for change in self.config.changes:
            first, second = (
                (student.resolve(s, "changes"), teacher.resolve(t, "changes")) for s, t in change
            )
            self.changes.append((first, second))
        pairs = [pair for change in self.changes for pair in change]
        return Taps(
            (*taps.student, *(s for s, _ in pairs)),
            (*taps.teacher, *(t for _, t in pairs)),
        )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The weighted sum, ≥ 0."""
        assert teacher is not None
        total = self.config.graph * super().forward(student, teacher, batch)
        for first, second in self.changes:
            ours = [full(student.features[pair[0]]) for pair in (first, second)]
            theirs = [fixed(teacher.features[pair[1]]) for pair in (first, second)]
            with exact(ours[0]):
                total = total + self.config.transform * self._change(ours, theirs)
        return total

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Of edges and vertices."""
        total = F.mse_loss(_edges(student), _edges(teacher))
        return total + F.mse_loss(student, teacher) if student.shape == teacher.shape else total

    def _change(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        total = ours[0].new_zeros(())
        if self.config.edge_transform:
            edges = [[_edges(f.flatten(1)) for f in layers] for layers in (ours, theirs)]
            total = _changed_alike(*edges)
        if all(layers[0].shape == layers[1].shape for layers in (ours, theirs)):
            total = total + _changed_alike(ours, theirs)
        return total


def _changed_alike(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """The squared difference between how far two layers are apart in each network."""
    return F.mse_loss(F.mse_loss(ours[0], ours[1]), F.mse_loss(theirs[0], theirs[1]))


def _edges(x: Tensor) -> Tensor:
    """Squared distances (B, B) of vectors, divided by the largest."""
    squares = squared_distances(x)
    return squares / (squares.max() + 1e-12)


class InformationTheoretic(OnLayer):
    """Information-theoretic representation distillation: `correlation`·L_c + `mutual`·L_m.

    L_c = log₂ Σ_d |c_d − 1|^(2α), c_d = mean_b s·t of columns standardised over the batch (unbiased); L_m = Σ over B²
    of G_s² − G_st², G the cosines of all pairs of samples divided by their trace, G_st the product of both networks'
    cosines, entry by entry, likewise. Taps one layer of each, flattened to (B, ·), the embedding by default; the
    student's goes through a linear layer to the teacher's width, for L_m only where the widths differ.

    Source: Miles, Lopez Rodriguez, Mikolajczyk, "Information Theoretic Representation Distillation", 2022.
    Trap: a column that is constant over the batch has no correlation, and counts as 0. L_c is a logarithm and may be
    negative; with 1/B and the unbiased deviation c_d = 1 is never reached.
    """

    class Config(LayerConfig):
        """Options of ``itrd``."""

        kind: Literal["itrd"]
        correlation: float = Field(default=2.0, ge=0)
        """factor of L_c"""
        mutual: float = Field(default=1.0, ge=0)
        """factor of L_m"""
        alpha: float = Field(default=1.01, gt=0.5)
        """α: half the power of what is missing of a correlation"""

        @model_validator(mode="after")
        def _not_nothing(self) -> Self:
            if not self.correlation and not self.mutual:
                raise ValueError("'correlation' or 'mutual' must be above 0")
            return self

    config: Config
    published = {
        "itrd": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "itrd", "weight": 1}],
            source="Miles, Lopez Rodriguez, Mikolajczyk, Information Theoretic Representation Distillation, 2022, "
            "for CIFAR-100",
        )
    }

    def build(self, context: Context) -> None:
        """Make the linear layer, where it is needed."""
        (ours,), (theirs,) = self.shapes(context)
        needed = self.config.correlation or ours != theirs
        if needed:
            self.adapter = nn.Linear(ours, theirs)
        self.equal = ours == theirs

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The weighted sum; it may be negative."""
        ours, theirs = self.layers(student, teacher)
        embedded = full(self.adapter(ours))
        with exact(ours):
            total = ours.new_zeros(())
            if self.config.correlation:
                total = total + self.config.correlation * self._missing(embedded, theirs)
            if self.config.mutual:
                total = total + self.config.mutual * _mutual(ours if self.equal else embedded, theirs)
            return total

    def _missing(self, student: Tensor, teacher: Tensor) -> Tensor:
        together = (_standardised(student) * _standardised(teacher)).mean(dim=0)
        return (together - 1).abs().pow(2 * self.config.alpha).sum().clamp_min(1e-30).log2()


def _standardised(x: Tensor) -> Tensor:
    """Columns (B, D) with mean 0 and unbiased standard deviation 1; those that are constant are 0."""
    least = 1e-6 * x.detach().abs().amax(dim=0)  # what rounding leaves of a constant
    x = x - x.mean(dim=0)
    deviation = torch.linalg.vector_norm(x, dim=0) / max(len(x) - 1, 1) ** 0.5
    return x / deviation.masked_fill(deviation <= least, torch.inf)


def _mutual(student: Tensor, teacher: Tensor) -> Tensor:
    ours, theirs = (unit(x) @ unit(x).T for x in (student, teacher))
    both = ours * theirs
    ours, both = (g / g.trace().clamp_min(1e-12) for g in (ours, both))
    return (ours.square() - both.square()).sum()


class ContrastiveKD(LayerLoss):
    """Contrastive representation distillation: noise-contrastive estimation of which sample the teacher saw.

    loss = −(1/B) Σ [log P₀/(P₀ + c) + Σ_k log c/(P_k + c)] for the student plus the same for the teacher; s and t are
    unit vectors of `width` numbers, linear embeddings of one layer of each, flattened to (B, ·), the embedding by
    default, both trained. P = exp(⟨m, s⟩/τ)/Z with m rows of a memory of the teacher's embeddings (N, width): row 0 is
    the sample's own, the K others are random samples of other classes; c = K/N, plus 1e-7 in the denominators. Z is
    set once, so that the first batch's mean P is 1/N. After each step the batch's rows become unit(`momentum`·old +
    (1 − `momentum`)·new). The memories are checkpointed, and hold two times N·`width` floats.

    Source: Tian, Krishnan, Isola, "Contrastive Representation Distillation", 2020.
    Trap: a sum over negatives, not their mean; Z has no gradient. Negatives are drawn with replacement here, where the
    authors' are not as long as a class leaves enough of them. A sample without a label has all others as negatives, and
    is one of theirs. Every step copies both memories, and takes some B·min(N, (K + 1)·`width`) floats.
    """

    EPSILON = 1e-7

    class Config(LayerConfig):
        """Options of ``crd``."""

        kind: Literal["crd"]
        width: int = Field(default=128, ge=1)
        """numbers of an embedding"""
        negatives: int = Field(default=16384, ge=1)
        """K: samples of other classes that each sample is compared with"""
        temperature: float = Field(default=0.07, ge=0.02)
        """τ; at smaller ones exp(1/τ) is infinite in float32"""
        momentum: float = Field(default=0.5, ge=0, lt=1)
        """how much of a memory's row stays when it is replaced"""
        positive: Literal["itself", "class"] = "itself"
        """the positive: the sample itself, or any sample of its class"""

    config: Config
    remembers = True
    published = {
        "crd": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "crd", "weight": 0.8}],
            source=CRD,
        )
    }
    student_memory: Tensor
    teacher_memory: Tensor
    student_normaliser: Tensor
    teacher_normaliser: Tensor
    order: Tensor
    first: Tensor
    count: Tensor

    def build(self, context: Context) -> None:
        """Make embeddings and memories, and sort the samples by class."""
        (ours,), (theirs,) = self.shapes(context)
        width, samples = self.config.width, context.samples
        self.adapter, self.teacher_adapter = Embedding(ours, width), Embedding(theirs, width)
        reach = (3 / width) ** 0.5
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, torch.empty(samples, width).uniform_(-reach, reach))
        for name in ("student_normaliser", "teacher_normaliser"):
            self.register_buffer(name, torch.zeros(()))
        # A sample without a label is a class of its own.
        known = context.labels.cpu()
        alone = known.amax().clamp_min(-1) + 1 + torch.arange(samples)
        groups = torch.where(known < 0, alone, known)
        order = groups.argsort(stable=True)
        _, inverse, counts = groups.unique(return_inverse=True, return_counts=True)
        starts = counts.cumsum(0) - counts
        if len(counts) == 1:
            raise Mismatch(
                "'crd' compares samples of several classes, and all labels are of one", "use another loss"
            )
        sorted_groups = {"order": order, "first": starts[inverse], "count": counts[inverse]}
        for name, values in sorted_groups.items():
            self.register_buffer(name, values, persistent=False)

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The sum of both sides, ≥ 0; the memories change."""
        rows = self.compared(batch)
        ours_scores = self._similar(student, self.teacher_memory, rows)
        theirs_scores = self._similar(teacher, self.student_memory, rows)
        self.student_normaliser = self._normaliser(self.student_normaliser, ours_scores)
        self.teacher_normaliser = self._normaliser(self.teacher_normaliser, theirs_scores)
        ours, theirs = (
            self._contrast(ours_scores, self.student_normaliser),
            self._contrast(theirs_scores, self.teacher_normaliser),
        )
        self.student_memory = self._remembered(self.student_memory, student, batch.index)
        self.teacher_memory = self._remembered(self.teacher_memory, teacher, batch.index)
        return ours + theirs

    def _remembered(self, memory: Tensor, embedded: Tensor, index: Tensor) -> Tensor:
        """The memory with the batch's rows moved; a copy, for the backward pass still needs the memory as it was."""
        moved = torch.lerp(embedded.detach(), memory[index].to(embedded.dtype), self.config.momentum)
        return memory.index_copy(0, index, unit(moved).to(memory.dtype))

    def compared(self, batch: Batch) -> Tensor:
        """Rows of the memories (B, 1 + K): the positive, then random samples of other classes."""
        index, samples = batch.index, len(self.order)
        first, count = self.first[index, None], self.count[index, None]
        position = _below(samples - count, self.config.negatives)
        negatives = self.order[position + count * (position >= first)]
        positive = self.order[first + _below(count, 1)] if self.config.positive == "class" else index[:, None]
        return torch.cat([positive, negatives], dim=1)

    def _similar(self, x: Tensor, memory: Tensor, rows: Tensor) -> Tensor:
        """exp(⟨memory[rows], x⟩/τ) (B, 1 + K), of unit vectors (B, width) and the other side's memory."""
        memory = memory.to(x.dtype)
        if (
            len(memory) <= rows.shape[1] * memory.shape[1]
        ):  # to multiply it whole takes less than to gather rows
            products = (x @ memory.T).gather(1, rows)
        else:
            products = torch.einsum("bkd,bd->bk", memory[rows], x)
        return (products / self.config.temperature).exp()

    def _normaliser(self, known: Tensor, scores: Tensor) -> Tensor:
        """Z: that of the first batch, found without waiting for the device."""
        return torch.where(known > 0, known, (scores.detach().mean() * len(self.order)).to(known.dtype))

    def _contrast(self, scores: Tensor, total: Tensor) -> Tensor:
        """One side's loss."""
        p = scores / total.to(scores.dtype)
        noise = (p.shape[1] - 1) / len(self.order)
        itself = (p[:, 0] / (p[:, 0] + noise + self.EPSILON)).log().sum()
        rest = (noise / (p[:, 1:] + noise + self.EPSILON)).log().sum()
        return -(itself + rest) / len(p)


def _below(limits: Tensor, count: int) -> Tensor:
    """Random whole numbers (B, ``count``), each in [0, limit) of its row (B, 1)."""
    return torch.randint(2**53, (len(limits), count), device=limits.device) % limits
