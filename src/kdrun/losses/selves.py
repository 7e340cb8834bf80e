"""Losses of students that teach themselves."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdrun.contracts import HIDDEN, Batch, Context, Loss, LossConfig, Outputs, Published
from kdrun.losses.labels import or_one, sides
from kdrun.losses.numerics import full


class PastSelf(Loss):
    """The student's own past: mean over labelled samples of −Σ_c q_c log softmax(z)_c, q = (1 − a)·onehot + a·p.

    Logits (B, C), labels (B,). p is what the student said of the sample when it last saw it in an earlier epoch, its
    softmax; the label where it has not. a grows in equal steps from epoch to epoch up to `share`. Under mixup each
    sample has two labels and two pasts with their shares, and is remembered where its own share is the larger one.

    Source: Kim, Ji, Yoon, Hwang, "Self-Knowledge Distillation with Progressive Refinement of Targets", 2021.
    Trap: it stands in the place of the cross-entropy, not beside it; what was said was said of another augmentation.
    Keeps 2·N·C numbers.
    """

    needs_teacher = False

    class Config(LossConfig):
        """Options of ``ps-kd``."""

        kind: Literal["ps-kd"]
        share: float = Field(default=0.8, ge=0, le=1)
        """what the past counts in the last epoch"""

    config: Config
    published = {
        "ps-kd": Published(
            losses=[{"kind": "ps-kd", "weight": 1}],
            source="Kim, Ji, Yoon, Hwang, Self-Knowledge Distillation with Progressive Refinement of Targets, 2021",
            tune={"ps-kd.share": [0.6, 0.7, 0.8, 0.9]},
        )
    }
    past: Tensor
    now: Tensor
    epoch: Tensor
    share: Tensor

    def build(self, context: Context) -> None:
        """Make room for what is said of every training sample: in the epochs before, and in this one."""
        for name in ("past", "now"):
            self.register_buffer(name, torch.zeros(context.samples, context.classes))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        self.register_buffer("share", torch.zeros(()), persistent=False)

    def begin(self, epoch: int, epochs: int) -> None:
        """Take what was said in the epoch before for the past."""
        self.share.fill_(self.config.share * (epoch + 1) / epochs)
        if epoch != int(self.epoch):
            self.past.copy_(self.now)
            self.epoch.fill_(epoch)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The weighted mean; 0, with a graph, where no label is seen."""
        logits = full(student.logits)
        wanted = torch.zeros_like(logits)
        places = [batch.index] if batch.mix is None else [batch.index, batch.index[batch.mix.partner]]
        for (labels, share), index in zip(sides(batch), places, strict=True):
            hot = F.one_hot(labels.clamp_min(0), logits.shape[1]).to(logits.dtype)
            past = self.past[index].to(logits.dtype)
            past = torch.where(past.any(dim=1, keepdim=True), past, hot)
            wanted = wanted + share[:, None] * torch.lerp(hot, past, self.share.to(logits.dtype))
        seen = wanted.sum(dim=1)
        # Hidden rows are cut off before the softmax, so that even infinite logits leave no NaN behind.
        log_p = F.log_softmax(logits.masked_fill((seen == 0)[:, None], 0), dim=-1)
        self._remember(log_p.detach().exp(), batch)
        return -(wanted * log_p).sum() / or_one(seen.sum())

    @torch.no_grad()
    def _remember(self, said: Tensor, batch: Batch) -> None:
        """Keep what is said of the labelled samples; of a query, or a mixed one, it may be of another sample.

        Of a sample that stands in a batch twice, it is what was said last.
        """
        known = batch.labels != HIDDEN
        if batch.mix is not None:
            known &= batch.mix.share >= 0.5
        same = (batch.index[:, None] == batch.index) & known
        last = (same * torch.arange(1, len(batch) + 1, device=same.device)).amax(
            dim=1
        )  # 0 where there is none
        rows = torch.where((last > 0)[:, None], said.to(self.now.dtype)[last - 1], self.now[batch.index])
        self.now.index_copy_(0, batch.index, rows)  # of one sample all rows are equal
