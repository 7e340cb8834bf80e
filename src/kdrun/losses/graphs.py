"""Losses on the nearest-neighbour graph of a batch."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdrun.contracts import Batch, Context, Loss, Outputs, Published, Taps
from kdrun.losses.base import StagesConfig
from kdrun.losses.matching import Pair, named_pairs, stage_pairs, with_layers
from kdrun.losses.numerics import exact, fixed, full, unit
from kdrun.taps import LayerTable

LEAST_DEGREE = 1e-6
"""Below it a sample counts as one that is like no other."""


class GraphKD(Loss):
    """Graph distillation: `edges`·Σ ‖A_s − A_t‖²/B² + `nodes`·Σ |n_s − n_t|² + `change`·Σ ‖ΔA_s − ΔA_t‖²/B².

    A (B, B) is the graph of a batch in one layer, flattened to (B, ·): A = D^−½ S D^−½, where S are the cosines of all
    pairs of samples, 0 where they are negative and on the diagonal, and D are the sums of its rows. With `neighbours`
    only those pairs are compared of which one is among the other's k nearest by the teacher's A. Nodes are the vectors
    of length 1, the student's after a linear layer to the teacher's width; |·|² is the mean over samples. ΔA is the
    change of A, over all pairs, from one of the layers to the next. Sums are means over the pairs of layers, or of
    consecutive ones: all pairs of stages where nothing is said.

    Source: Lassance, Bontonou, Hacene, Gripon, Tang, Ortega, "Deep Geometric Knowledge Distillation with Graphs", 2020,
    for the edges and their weight, with the authors' code; nodes and changes, here with the factor 0, after Liu et al.,
    "Knowledge Distillation via Instance Relationship Graph", 2019.
    Trap: a mean over B², so the weight holds for batches of 128; cosines that are negative would have roots of negative
    sums, and the authors' layers end in a ReLU.
    """

    class Config(StagesConfig):
        """Options of ``gkd``."""

        kind: Literal["gkd"]
        edges: float = Field(default=1.0, ge=0)
        """factor of the edges"""
        nodes: float = Field(default=0.0, ge=0)
        """factor of the nodes"""
        change: float = Field(default=0.0, ge=0)
        """factor of the edges' change from layer to layer"""
        neighbours: int | None = Field(default=None, ge=1)
        """k, how many neighbours a sample has; all other samples of the batch where nothing is said, as published"""

        @model_validator(mode="after")
        def _not_nothing(self) -> Self:
            if not (self.edges or self.nodes or self.change):
                raise ValueError("'edges', 'nodes' or 'change' must be above 0")
            if self.change and self.layers is not None and len(self.layers) < 2:
                raise ValueError("a change goes from one pair of layers to the next: write two or more")
            return self

    on_logits = False
    config: Config
    pairs: list[Pair]
    published = {
        "gkd": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "gkd", "weight": 25}],
            source="Lassance et al., Deep Geometric Knowledge Distillation with Graphs, 2020; weight: their code",
        )
    }

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """All pairs of layers; raises ``Mismatch`` where there are none."""
        teacher = with_layers(teacher, self.config.kind)
        named = self.config.layers
        self.pairs = stage_pairs(student, teacher) if named is None else named_pairs(named, student, teacher)
        ours, theirs = zip(*self.pairs, strict=True)
        return Taps(ours, theirs)

    def build(self, context: Context) -> None:
        """Make the linear layers of the nodes, if they are compared."""
        assert context.teacher is not None
        widths = [
            (context.student.features[s][0].numel(), context.teacher.features[t][0].numel())
            for s, t in self.pairs
        ]
        self.adapters = nn.ModuleList(nn.Linear(*both) for both in widths if self.config.nodes)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The weighted sum, ≥ 0."""
        assert teacher is not None
        ours = [full(student.features[s]).flatten(1) for s, _ in self.pairs]
        theirs = [fixed(teacher.features[t]).flatten(1) for _, t in self.pairs]
        with exact(ours[0]):
            return self._compared(ours, theirs)

    def _compared(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        config, total = self.config, ours[0].new_zeros(())
        graphs = [(_graph(s), _graph(t)) for s, t in zip(ours, theirs, strict=True)]
        if config.edges:
            apart = [((s - t) * self._among_neighbours(t)).square().mean() for s, t in graphs]
            total = total + config.edges * torch.stack(apart).mean()
        if config.nodes:
            mapped = [full(adapter(s)) for adapter, s in zip(self.adapters, ours, strict=True)]
            apart = [
                (unit(s) - unit(t)).square().sum(dim=1).mean() for s, t in zip(mapped, theirs, strict=True)
            ]
            total = total + config.nodes * torch.stack(apart).mean()
        if config.change and len(graphs) > 1:
            apart = [F.mse_loss(s2 - s1, t2 - t1) for (s1, t1), (s2, t2) in pairwise(graphs)]
            total = total + config.change * torch.stack(apart).mean()
        return total

    def _among_neighbours(self, graph: Tensor) -> Tensor:
        """1 for each pair (B, B) of samples with an edge of which one is among the other's nearest, else 0."""
        k, others = self.config.neighbours, len(graph) - 1
        if k is None or k >= others:
            return torch.ones_like(graph)
        chosen = torch.zeros_like(graph).scatter(1, graph.topk(k, dim=1).indices, 1) * (graph > 0)
        return torch.maximum(chosen, chosen.T)


def _graph(x: Tensor) -> Tensor:
    """A (B, B) of vectors (B, D): cosines without negative ones and the diagonal, normalised by the degrees."""
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    similar = (unit(x) @ unit(x).T).clamp_min(0).masked_fill(itself, 0)
    root = similar.sum(dim=1).clamp_min(LEAST_DEGREE).rsqrt()
    return root[:, None] * similar * root
