"""Losses on how a student is made, whatever its teacher says."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.contracts import Batch, Loss, LossConfig, Outputs, Published, Taps
from kdrun.errors import Mismatch
from kdrun.losses.numerics import full
from kdrun.taps import LayerTable


class SplitBalance(Loss):
    """Balanced splits of a soft tree: −Σ_i 2^−d_i · ½ (log α_i + log(1 − α_i)), over its inner nodes i of depth d_i.

    α_i = Σ_b P_i,b p_i,b / Σ_b P_i,b is the share of a batch that node i sends to the right: p is its gate, P how
    probable it is that a sample comes there. Taps the gates' logits (B, 2^D − 1), level by level, and log P. Least,
    D·log 2, where each node sends half of its samples each way.

    Source: Frosst, Hinton, "Distilling a Neural Network Into a Soft Decision Tree", 2017.
    Trap: α is of the batch, where the paper has a running average for the deeper nodes, so batches should be large.
    """

    class Config(LossConfig):
        """Options of ``split-balance``."""

        kind: Literal["split-balance"]

    needs_teacher = False
    on_logits = False
    config: Config
    published = {
        "soft-tree": Published(
            losses=[
                {"kind": "kd", "weight": 1, "temperature": 1},
                {"kind": "split-balance", "weight": 0.1},
            ],
            source="Frosst, Hinton, Distilling a Neural Network Into a Soft Decision Tree, 2017",
        )
    }

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """Gates and visits; raises ``Mismatch`` where the student is no soft tree."""
        if not {"gates", "visits"} <= student.shapes.keys():
            raise Mismatch(
                f"'split-balance' looks at the gates of a soft tree, and {student.owner} is none",
                "use it with `model: soft-tree`",
                "kind",
            )
        return Taps(("gates", "visits"))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The penalty, > 0."""
        gates, visits = (full(student.features[layer]) for layer in ("gates", "visits"))
        there = visits[:, : gates.shape[1]]
        total = there.logsumexp(dim=0)
        sides = [(there + F.logsigmoid(sign * gates)).logsumexp(dim=0) - total for sign in (1, -1)]
        depth = torch.arange(1, gates.shape[1] + 1, device=gates.device).log2().floor()
        return -((sides[0] + sides[1]) / 2 * torch.exp2(-depth)).sum()
