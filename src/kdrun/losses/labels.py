"""Losses on the labels."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdrun.contracts import HIDDEN, Batch, Context, Loss, LossConfig, Outputs, Published
from kdrun.losses.base import Temperature
from kdrun.losses.numerics import full, relative_entropy


class LabelLoss(Loss):
    """A loss on the labels: a mean over labelled samples, 0 where there is none.

    Under mixup each sample has two labels with shares λ and 1 − λ; the mean is weighted by the shares of what is
    labelled.
    """

    needs_teacher = False
    classes: int | None = None

    def build(self, context: Context) -> None:
        """Learn the number of classes, which ``target`` needs."""
        self.classes = context.classes

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The weighted mean; 0, with a graph, where no label is seen."""
        logits = full(student.logits)
        if batch.all_seen and batch.mix is None:
            return self.each(logits, batch.labels).mean()
        total, seen = logits.new_zeros(()), logits.new_zeros(())
        for labels, share in sides(batch):
            # Hidden rows are cut off before the softmax, so that even infinite logits leave no NaN behind.
            known = logits.masked_fill((labels == HIDDEN)[:, None], 0)
            total, seen = total + (share * self.each(known, labels)).sum(), seen + share.sum()
        return total / or_one(seen)

    def target(self, teacher: Outputs | None, batch: Batch) -> Tensor:
        """What is wanted, mixed (B, C); a row's sum is the share of its sample that has a label. Needs ``build``."""
        assert self.classes is not None, "build tells how many classes there are"
        total = torch.zeros(len(batch), self.classes, device=batch.labels.device)
        for labels, share in sides(batch):
            hot = F.one_hot(labels.clamp_min(0), self.classes).to(total.dtype)
            total = total + share[:, None] * self.wanted(hot)
        return total

    @abstractmethod
    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each sample (B,); what it is for hidden labels does not count."""

    @abstractmethod
    def wanted(self, hot: Tensor) -> Tensor:
        """Class probabilities (B, C) for labels as one-hot rows."""


class CrossEntropy(LabelLoss):
    """Cross-entropy to the labels: mean over labelled samples of −Σ_c q_c log softmax(z)_c.

    q is the label's one-hot vector, smoothed to (1 − e)·onehot + e/C. Logits (B, C), labels (B,). Samples
    with a hidden label do not count, and a batch without any label gives 0. Under mixup each sample has two
    labels with shares λ and 1 − λ; the mean is weighted by the shares of what is labelled.

    Source: Bridle, "Probabilistic Interpretation of Feedforward Classification Network Outputs", 1990;
    smoothing: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016; mixup: Zhang
    et al., "mixup: Beyond Empirical Risk Minimization", 2018.
    Trap: some codes spread e over the C − 1 other classes, which is another loss (`smoothing_over: others`).
    """

    class Config(LossConfig):
        """Options of ``ce``."""

        kind: Literal["ce"]
        label_smoothing: float | None = Field(default=None, ge=0, le=1)
        """share of the target spread evenly over the classes; the training's where nothing is said"""
        smoothing_over: Literal["all", "others"] = "all"
        """over which classes it is spread: over all, e/C, or over all but the label, e/(C − 1)"""

    config: Config
    published = {
        "ce": Published(
            losses=[{"kind": "ce", "weight": 1}],
            source="Bridle, Probabilistic Interpretation of Feedforward Classification Network Outputs, 1990",
        ),
        "label-smoothing": Published(
            losses=[{"kind": "ce", "weight": 1, "label_smoothing": 0.1}],
            source="Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016",
        ),
    }

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The cross-entropy of each sample."""
        each = F.cross_entropy(logits, labels, ignore_index=HIDDEN, reduction="none")
        if smoothing := self._over_all(logits.shape[1]):
            each = (1 - smoothing) * each - smoothing * F.log_softmax(logits, dim=-1).mean(dim=-1)
        return each

    def wanted(self, hot: Tensor) -> Tensor:
        """Smoothed labels."""
        smoothing = self._over_all(hot.shape[1])
        return (1 - smoothing) * hot + smoothing / hot.shape[1]

    def _over_all(self, classes: int) -> float:
        """The smoothing, as a share spread over all classes: e over the others is e·C/(C − 1) over all."""
        smoothing = self.config.label_smoothing or 0.0
        if self.config.smoothing_over == "others":
            smoothing *= classes / max(classes - 1, 1)
        return smoothing


class VirtualTeacher(LabelLoss):
    """Teacher-free regularisation: mean over labelled samples and C of q (log q − log softmax(z)).

    Logits (B, C), labels (B,). q = softmax(u/T) of the probabilities u of a made-up teacher, `correct` for the
    label and the rest spread over the other classes. Under mixup each sample has two labels with their shares.

    Source: Yuan et al., "Revisiting Knowledge Distillation via Label Smoothing Regularization", 2020.
    Trap: the softmax is taken of probabilities, so q is nearly uniform; the student has no temperature, there is
    no T², and the mean over C makes the weight large.
    """

    class Config(LossConfig):
        """Options of ``tf-kd-reg``."""

        kind: Literal["tf-kd-reg"]
        temperature: Temperature = 20.0
        """softens the made-up teacher"""
        correct: float = Field(default=0.99, gt=0, lt=1)
        """the made-up teacher's probability of the label"""

    config: Config
    published = {
        "tf-kd-reg": Published(
            losses=[{"kind": "ce", "weight": 0.9}, {"kind": "tf-kd-reg", "weight": 10}],
            source="Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization, 2020, for "
            "ResNet18 on CIFAR-100",
        )
    }

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The divergence of each sample, averaged over the classes."""
        q = self.wanted(F.one_hot(labels.clamp_min(0), logits.shape[1]).to(logits.dtype))
        return relative_entropy(q, F.log_softmax(logits, dim=-1)) / logits.shape[1]

    def wanted(self, hot: Tensor) -> Tensor:
        """softmax(u/T)."""
        u = self.config.correct * hot + (1 - self.config.correct) / max(hot.shape[1] - 1, 1) * (1 - hot)
        return F.softmax(u / self.config.temperature, dim=-1)


def sides(batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Labels and their shares (B,), 0 where they are hidden; a second pair under mixup, the partners'."""
    labels = batch.labels
    if batch.mix is None:
        return [(labels, (labels != HIDDEN).float())]
    partners, share = labels[batch.mix.partner], batch.mix.share
    return [(labels, share * (labels != HIDDEN)), (partners, (1 - share) * (partners != HIDDEN))]


def or_one(count: Tensor) -> Tensor:
    """A count to divide by: 1 where it is 0."""
    return torch.where(count > 0, count, 1)
