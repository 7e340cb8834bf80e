"""Losses on the teacher's logits. They need no labels."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdrun.contracts import Batch, Loss, LossConfig, Outputs, Published
from kdrun.losses.numerics import fixed, full


class SoftTargets(Loss):
    """Knowledge distillation: T² · mean_b KL(softmax(z_t/T) ‖ softmax(z_s/T)).

    Logits (B, C) of both. T² keeps the size of the gradient when the temperature changes.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
    Trap: a mean over B·C instead of B makes the term C times smaller, and some codes leave T² out.
    """

    class Config(LossConfig):
        """Options of ``kd``."""

        kind: Literal["kd"]
        temperature: float = Field(default=4.0, gt=0)
        """softens both distributions; 1 leaves them as they are"""

    config: Config
    published = Published(
        losses=[{"kind": "ce", "weight": 0.1}, {"kind": "kd", "weight": 0.9, "temperature": 4}],
        source="Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015; weights for "
        "CIFAR-100: Tian, Krishnan, Isola, Contrastive Representation Distillation, 2020",
    )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The divergence, ≥ 0."""
        log_student = F.log_softmax(full(student.logits) / self.temperature, dim=-1)
        # Probabilities rather than their logarithms: a teacher may rule out classes, with logits of −∞.
        return F.kl_div(log_student, self.target(teacher, batch), reduction="batchmean") * self.temperature**2

    def target(self, teacher: Outputs | None, batch: Batch) -> Tensor:
        """softmax(z_t/T) (B, C): what the student's softmax at the same temperature should be."""
        assert teacher is not None
        return F.softmax(fixed(teacher.logits) / self.temperature, dim=-1)


class HardTargets(Loss):
    """Hard-label distillation: cross-entropy of the student to the teacher's most probable class.

    Logits (B, C) of both; no temperature.

    Source: Touvron et al., "Training Data-Efficient Image Transformers & Distillation through Attention",
    2021.
    Trap: there it is taken on a second, distillation head; with one head both terms share the logits.
    """

    class Config(LossConfig):
        """Options of ``hard``."""

        kind: Literal["hard"]

    config: Config
    published = Published(
        losses=[{"kind": "ce", "weight": 0.5}, {"kind": "hard", "weight": 0.5}],
        source="Touvron et al., Training Data-Efficient Image Transformers & Distillation through Attention, "
        "2021",
    )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The cross-entropy, ≥ 0; at student = teacher it is the teacher's own doubt, not 0."""
        assert teacher is not None
        return F.cross_entropy(full(student.logits), teacher.logits.argmax(dim=-1))

    def target(self, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The teacher's most probable class as one-hot rows (B, C)."""
        assert teacher is not None
        return F.one_hot(teacher.logits.argmax(dim=-1), teacher.logits.shape[-1]).float()


class LogitMSE(Loss):
    """Regression on logits: mean over B·C of (z_s − z_t)².

    Logits (B, C) of both. The published mix is this term alone: in the paper the student sees no labels.

    Source: Ba, Caruana, "Do Deep Nets Really Need to be Deep?", 2014.
    Trap: a sum over classes instead of the mean makes the term C times larger. It also matches the logits'
    common offset, which no prediction depends on.
    """

    class Config(LossConfig):
        """Options of ``logit-mse``."""

        kind: Literal["logit-mse"]

    config: Config
    published = Published(
        losses=[{"kind": "logit-mse", "weight": 1}],
        source="Ba, Caruana, Do Deep Nets Really Need to be Deep?, 2014",
    )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The mean squared error, ≥ 0."""
        assert teacher is not None
        return F.mse_loss(full(student.logits), fixed(teacher.logits))

    def target(self, teacher: Outputs | None, batch: Batch) -> Tensor:
        """softmax(z_t) (B, C)."""
        assert teacher is not None
        return F.softmax(fixed(teacher.logits), dim=-1)
