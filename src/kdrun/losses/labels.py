"""Losses on the labels."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdrun.contracts import HIDDEN, Batch, Context, Loss, LossConfig, Outputs, Published
from kdrun.losses.numerics import full


class CrossEntropy(Loss):
    """Cross-entropy to the labels: mean over labelled samples of −Σ_c q_c log softmax(z)_c.

    q is the label's one-hot vector, smoothed to (1 − e)·onehot + e/C. Logits (B, C), labels (B,). Samples
    with a hidden label do not count, and a batch without any label gives 0. Under mixup each sample has two
    labels with shares λ and 1 − λ; the mean is weighted by the shares of what is labelled.

    Source: Bridle, "Probabilistic Interpretation of Feedforward Classification Network Outputs", 1990;
    smoothing: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016; mixup: Zhang
    et al., "mixup: Beyond Empirical Risk Minimization", 2018.
    Trap: some codes spread e over the C − 1 other classes, which is another loss.
    """

    class Config(LossConfig):
        """Options of ``ce``."""

        kind: Literal["ce"]
        label_smoothing: float | None = Field(default=None, ge=0, le=1)
        """share of the target spread evenly over all classes; the training's where nothing is said"""

    config: Config
    needs_teacher = False
    published = Published(
        losses=[{"kind": "ce", "weight": 1}],
        source="Bridle, Probabilistic Interpretation of Feedforward Classification Network Outputs, 1990",
    )
    classes: int | None = None

    def build(self, context: Context) -> None:
        """Learn the number of classes, which ``target`` needs."""
        self.classes = context.classes

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The weighted mean; 0, with a graph, where no label is seen."""
        logits = full(student.logits)
        total, seen = logits.new_zeros(()), logits.new_zeros(())
        for labels, share in _sides(batch):
            # Hidden rows are cut off before the softmax, so that even infinite logits leave no NaN behind.
            known = logits.masked_fill((labels == HIDDEN)[:, None], 0)
            each = F.cross_entropy(
                known, labels, ignore_index=HIDDEN, reduction="none", label_smoothing=self._smoothing
            )
            total, seen = total + (share * each).sum(), seen + share.sum()
        return total / _or_one(seen)

    def target(self, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Smoothed and mixed labels (B, C); rows of zeros where a sample has no label. Needs ``build``."""
        assert self.classes is not None, "build tells how many classes there are"
        total = torch.zeros(len(batch), self.classes, device=batch.labels.device)
        seen = total.new_zeros(len(batch))
        for labels, share in _sides(batch):
            hot = F.one_hot(labels.clamp_min(0), self.classes)
            smooth = (1 - self._smoothing) * hot + self._smoothing / self.classes
            total, seen = total + share[:, None] * smooth, seen + share
        return total / _or_one(seen)[:, None]

    @property
    def _smoothing(self) -> float:
        return self.config.label_smoothing or 0.0


def _sides(batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Labels and their shares (B,), 0 where they are hidden; a second pair under mixup, the partners'."""
    labels = batch.labels
    if batch.mix is None:
        return [(labels, (labels != HIDDEN).float())]
    others, share = labels[batch.mix.partner], batch.mix.share
    return [(labels, share * (labels != HIDDEN)), (others, (1 - share) * (others != HIDDEN))]


def _or_one(count: Tensor) -> Tensor:
    """A count to divide by: 1 where it is 0."""
    return torch.where(count > 0, count, 1)
