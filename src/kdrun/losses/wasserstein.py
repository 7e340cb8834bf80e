"""Losses that carry one distribution over to another: of classes, and of features."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdrun.contracts import HIDDEN, Batch, Context, Loss, Published
from kdrun.losses.adapters import MapRegressor
from kdrun.losses.base import LayerConfig, LayerLoss, LogitConfig, LogitLoss, Temperature, main_classes
from kdrun.losses.numerics import fixed, others
from kdrun.losses.recipes import LATE

SOURCE = (
    "Lv, Yang, Li, Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation, 2024"
)


class WassersteinLogits(LogitLoss):
    """Wasserstein distance of logits: mean_b Σ_ij flow_ij · cost_ij, between classes i of the student and j of the
    teacher.

    Logits (B, C) of both; the distributions are softmaxes at temperature T over all classes but the sample's
    own. The flow is Sinkhorn's, with `regularization` and `iterations`, unrolled. cost_ij = 1 −
    exp(−`sharpness`·(1 − CKA_ij)), CKA the linear centred kernel alignment of what the teacher's logits are for
    the training samples of the two classes, not augmented; rows of two classes are paired by their order. A
    sample without a label counts for the class that the teacher predicts.

    Source: Lv, Yang, Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", 2024.
    Trap: not multiplied by T². The regularised distance is not quite 0 at student = teacher. Memory is B·C²
    floats an iteration, and C·n² once, n the samples of a class. The paper's term for the sample's own class is
    nkd with γ = 0. With z-scores the costs stay those of the raw logits. Classes are cut to the smallest of
    those with at least a quarter of the median's samples; those with fewer count as unlike all others. Copies
    of the authors' code take the last map's positions instead of logits for CIFAR-100.
    """

    EPSILON = 1e-8

    class Config(LogitConfig):
        """Options of ``wkd-logit``."""

        kind: Literal["wkd-logit"]
        temperature: Temperature = 8.0
        """softens both distributions"""
        sharpness: float = Field(default=1.0, gt=0)
        """κ: how fast the cost grows with the distance of two classes"""
        regularization: float = Field(default=0.05, gt=0)
        """how much the flow is spread"""
        iterations: int = Field(default=10, ge=1)
        """Sinkhorn's iterations"""

    config: Config
    on_logits = False  # the costs are one teacher's
    published = {
        "wkd-logit": Published(
            losses=[
                {"kind": "ce", "weight": 1},
                {"kind": "nkd", "weight": 1, "gamma": 0},
                {"kind": "wkd-logit", "weight": 600, "schedule": LATE},
            ],
            source=f"{SOURCE}, for resnet32x4 to resnet8x4 on CIFAR-100, falling after epoch 150 of 240",
        )
    }
    cost: Tensor

    def build(self, context: Context) -> None:
        """Learn how far apart the classes are."""
        logits, classes = [], []
        for batch, said in context.survey():
            seen = fixed(said.logits)
            logits.append(seen)
            classes.append(torch.where(batch.labels == HIDDEN, seen.argmax(dim=-1), batch.labels))
        alike = _alignment(torch.cat(logits), torch.cat(classes), context.classes)
        self.register_buffer("cost", 1 - torch.exp(-self.config.sharpness * (1 - alike)))

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The distance, ≥ 0."""
        classes, t = main_classes(batch, teacher), self.temperature
        ours, theirs = (F.softmax(others(z, classes) / t, dim=-1) for z in (student, teacher))
        cost = self._without(classes).to(ours.dtype).relu() + self.EPSILON
        flow = _flow(ours, theirs, cost, self.config.regularization, self.config.iterations)
        return (flow * cost).sum() / len(batch)

    target = (
        Loss.target
    )  # none: the flow is spread, so the teacher's own distribution is only near the minimum

    def _without(self, classes: Tensor) -> Tensor:
        """The costs (B, C − 1, C − 1) without each sample's own class."""
        positions = torch.arange(len(self.cost) - 1, device=classes.device)
        kept = positions + (positions >= classes[:, None])
        return self.cost[kept[:, :, None], kept[:, None, :]]


def _alignment(logits: Tensor, classes: Tensor, count: int) -> Tensor:
    """Linear centred kernel alignment (C, C) of the samples of every two classes; 0 where a class has no spread."""
    groups = [logits[classes == c] for c in range(count)]
    sizes = sorted(len(group) for group in groups)
    least = min((size for size in sizes if size >= max(2, sizes[count // 2] / 4)), default=2)
    kernels = logits.new_zeros(count, least * least)
    for c, group in enumerate(groups):
        if len(group) >= least:
            centred = group[:least] - group[:least].mean(dim=0)
            kernels[c] = (centred @ centred.T).flatten()
    norms = torch.linalg.vector_norm(kernels, dim=1)
    alike: Tensor = kernels @ kernels.T / (norms[:, None] * norms).clamp_min(1e-30)
    return alike.fill_diagonal_(1)


def _flow(ours: Tensor, theirs: Tensor, cost: Tensor, regularization: float, iterations: int) -> Tensor:
    """Sinkhorn's flow (B, N, N) from distributions ``ours`` (rows) to ``theirs`` (columns), both (B, N)."""
    kernel = torch.exp(-cost / regularization)
    rows = torch.full_like(ours, 1 / max(ours.shape[1], 1))[:, :, None]
    columns = rows
    for _ in range(iterations):
        columns = theirs[:, :, None] / (kernel.mT @ rows + WassersteinLogits.EPSILON)
        rows = ours[:, :, None] / (kernel @ columns + WassersteinLogits.EPSILON)
    return rows * kernel * columns.mT


class WassersteinFeatures(LayerLoss):
    """Wasserstein distance of features: Σ (`mean_weight`·(μ_s − μ_t)² + (σ_s − σ_t)²) / (B·g²).

    Taps one map (B, D, H, W) of each, the last stage by default; the student's goes through hint's regressor.
    Each channel of each of g×g cells is a Gaussian with mean μ and standard deviation σ = √(unbiased variance +
    1e-5); the sum is over samples, channels and cells.

    Source: Lv, Yang, Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", 2024.
    Trap: γ multiplies the means, not the deviations. The weight for resnet32x4 is 0.08 in one copy of the code and
    0.006 in another.
    """

    class Config(LayerConfig):
        """Options of ``wkd-feature``."""

        kind: Literal["wkd-feature"]
        mean_weight: float = Field(default=4.0, ge=0)
        """γ: factor of the means' part"""
        grid: int = Field(default=1, ge=1)
        """g: cells a side"""

    config: Config
    default = "last stage"
    form = "maps"
    published = {
        "wkd-feature": Published(
            losses=[
                {"kind": "ce", "weight": 1},
                {"kind": "wkd-feature", "weight": 0.08, "schedule": LATE},
            ],
            source=f"{SOURCE}, for resnet32x4 to resnet8x4 on CIFAR-100, falling after epoch 150 of 240",
        )
    }

    def build(self, context: Context) -> None:
        """Make the regressor."""
        self.adapter = MapRegressor(*self.shapes(context))

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The sum over cells, ≥ 0."""
        grid = min(self.config.grid, *student.shape[2:], *teacher.shape[2:])
        pairs = zip(_cells(student, grid), _cells(teacher, grid), strict=True)
        terms = [self._apart(ours.flatten(2), theirs.flatten(2)) for ours, theirs in pairs]
        return torch.stack(terms).sum() / (len(teacher) * grid**2)

    def _apart(self, ours: Tensor, theirs: Tensor) -> Tensor:
        means = (ours.mean(dim=2) - theirs.mean(dim=2)).square().sum()
        return self.config.mean_weight * means + (_deviation(ours) - _deviation(theirs)).square().sum()


def _cells(x: Tensor, grid: int) -> list[Tensor]:
    """The grid's cells of maps (B, D, H, W), bounded like those of adaptive pooling."""
    rows, columns = (
        [slice(i * size // grid, -(-(i + 1) * size // grid)) for i in range(grid)] for size in x.shape[2:]
    )
    return [x[:, :, row, column] for row in rows for column in columns]


def _deviation(x: Tensor) -> Tensor:
    """√(unbiased variance + 1e-5) over the positions of (B, D, N); of one place √1e-5."""
    spread = (x - x.mean(dim=2, keepdim=True)).square().sum(dim=2) / max(x.shape[2] - 1, 1)
    return (spread + 1e-5).sqrt()
