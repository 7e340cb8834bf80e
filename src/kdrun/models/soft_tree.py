"""A decision tree with soft decisions, which gradients can reach."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdrun.contracts import Model, ModelConfig


class SoftTree(Model):
    """A soft decision tree: at each inner node a filter says how likely a sample goes to the right.

    A node's gate is σ(β·(w·x + b)), with a sharpness β that is learnt, too; a leaf says learnt class probabilities Q,
    the same for all samples, and the tree Σ P Q, with P the product of the gates on the way to each leaf. The layer
    `gates` gives β·(w·x + b) of all inner nodes (B, 2^depth − 1), level by level, `visits` log P of all nodes
    (B, 2^(depth + 1) − 1), and `paths`, the embedding, P of the leaves (B, 2^depth).

    Source: Frosst, Hinton, "Distilling a Neural Network Into a Soft Decision Tree", 2017.
    Trap: there the loss is the cross-entropy of each leaf, averaged by P; here any loss is put on the logarithm of the
    mean. The paper's penalty on lopsided gates is the loss `split-balance`.
    """

    class Config(ModelConfig):
        """Options of `soft-tree`."""

        kind: Literal["soft-tree"]
        depth: int = Field(default=8, ge=1, le=14)
        """decisions on the way to a leaf; there are 2^depth leaves"""
        predicts_by: Literal["mean", "greatest-path"] = "mean"
        """what is scored: the mean over all leaves, or the leaf of the most probable path, which can be explained"""

    stages, pooled, head = ("gates",), "paths", "leaves"

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        inputs = int(torch.Size(shape).numel())
        self.gates = _Gates(inputs, 2**config.depth - 1)
        self.visits = _Visits()
        self.paths = _Paths(config.predicts_by == "greatest-path")
        self.leaves = _Leaves(2**config.depth, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities (B, C) of inputs (B, …)."""
        log_probabilities: Tensor = self.leaves(self.paths(self.visits(self.gates(self.flatten(x)))))
        return log_probabilities


class _Gates(nn.Module):
    """β·(w·x + b) of every inner node."""

    def __init__(self, inputs: int, nodes: int) -> None:
        super().__init__()
        self.filters = nn.Linear(inputs, nodes)
        self.sharpness = nn.Parameter(torch.ones(nodes))

    def forward(self, x: Tensor) -> Tensor:
        """(B, F) → (B, nodes)."""
        gates: Tensor = self.sharpness * self.filters(x)
        return gates


class _Visits(nn.Module):
    """The logarithm of how probable it is that a sample comes to each node; below node i are 2i + 1 and 2i + 2."""

    def forward(self, gates: Tensor) -> Tensor:
        """(B, 2^d − 1) → (B, 2^(d + 1) − 1)."""
        levels, first = [gates.new_zeros(len(gates), 1)], 0
        while first < gates.shape[1]:
            above = levels[-1]
            own = gates[:, first : first + above.shape[1]]
            sides = torch.stack([F.logsigmoid(-own), F.logsigmoid(own)], dim=2)
            levels.append((above[:, :, None] + sides).flatten(1))
            first += above.shape[1]
        return torch.cat(levels, dim=1)


class _Paths(nn.Module):
    """How probable each leaf is; where only the greatest path counts, that is 1 while nothing is learnt."""

    def __init__(self, greatest: bool) -> None:
        super().__init__()
        self.greatest = greatest

    def forward(self, visits: Tensor) -> Tensor:
        """(B, 2^(d + 1) − 1) → (B, 2^d)."""
        paths = visits[:, visits.shape[1] // 2 :].exp()
        if self.greatest and not self.training:
            return F.one_hot(paths.argmax(dim=1), paths.shape[1]).to(paths.dtype)
        return paths


class _Leaves(nn.Module):
    """What each leaf says, and their mean."""

    def __init__(self, leaves: int, classes: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.randn(leaves, classes))

    def forward(self, paths: Tensor) -> Tensor:
        """(B, leaves) → (B, C)."""
        tiny = torch.finfo(torch.float32).tiny
        return (paths.float() @ F.softmax(self.scores.float(), dim=1)).clamp_min(tiny).log()
