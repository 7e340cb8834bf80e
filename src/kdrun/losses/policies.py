"""Losses by which a policy is distilled: the teacher's logits are an agent's Q-values, or a policy's own logits."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdrun.contracts import Batch, Outputs, Published
from kdrun.losses.base import LogitConfig, LogitLoss, Temperature
from kdrun.losses.labels import or_one
from kdrun.losses.numerics import bounded, relative_entropy


class PolicyKL(LogitLoss):
    """Policy distillation: mean_b KL(softmax(q_t/τ) ‖ softmax(z_s)).

    Logits (B, C) of both, a class for each action; q are the teacher's Q-values, or a policy's logits. τ is on the
    teacher's side alone. Q-values differ by little, so τ far below 1 makes of them a policy that hardly strays from the
    best action; of a policy's logits τ = 1 keeps what they say, and above 1 softens it. It is `ttm` with γ = 1/τ.

    Source: Rusu, Colmenarejo, Gulcehre, Desjardins, Kirkpatrick, Pascanu, Mnih, Kavukcuoglu, Hadsell, "Policy
    Distillation", 2015.
    Trap: no T², and the student has no temperature. τ is measured in the units of the rewards: Q-values that are scaled
    by 10 need a τ of 10 times as much.
    """

    class Config(LogitConfig):
        """Options of ``policy-kl``."""

        kind: Literal["policy-kl"]
        temperature: Temperature = Field(default=0.01)
        """τ: below 1 sharpens what the teacher says, as is made for Q-values; above 1 softens a policy's logits"""

    config: Config
    published = {
        "policy-kl": Published(
            losses=[{"kind": "policy-kl", "weight": 1, "temperature": 0.01}],
            source="Rusu et al., Policy Distillation, 2015, of Q-values; for a policy's logits write "
            "`set: {policy-kl.temperature: 1}`",
        )
    }

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The divergence, ≥ 0."""
        p = F.softmax(teacher / self.temperature, dim=-1)
        return relative_entropy(p, F.log_softmax(student, dim=-1)).mean()


class Viper(LogitLoss):
    """VIPER: Σ_b l_b · (−log softmax(z_s)_b[a_b]) / Σ_b l_b, a = argmax_a q_t(a), l = max_a q_t(a) − min_a q_t(a).

    Logits (B, C) of both, a class for each action; q are the teacher's Q-values. l is what the worst action costs in a
    sample's state: where all actions are equally good there is nothing to learn. Of a policy without Q-values
    log π(a) stands for q, as in maximum-entropy learning, and its range is that of the logits. A batch without a
    sample that counts gives 0. What is fitted at once counts each sample by its l over the mean of all, and so does a
    tree that is pruned. Logit standardization is of the student's logits alone, for it would level the values.

    Source: Bastani, Pu, Solar-Lezama, "Verifiable Reinforcement Learning via Policy Extraction", 2018.
    Trap: the authors draw the samples of each fit with probabilities that go with l; this is the mean of that. Several
    teachers of Q-values are to be averaged by `combine: mean-logits`. In a step l is relative to the batch; beside
    other terms a model that is fitted at once takes it as it is, in the units of the rewards.
    """

    class Config(LogitConfig):
        """Options of ``viper``."""

        kind: Literal["viper"]

    config: Config
    weighs_samples = True
    published = {
        "viper": Published(
            losses=[{"kind": "viper", "weight": 1}],
            source="Bastani, Pu, Solar-Lezama, Verifiable Reinforcement Learning via Policy Extraction, 2018, for "
            "trees; its states are those that the student comes to",
        )
    }

    def given(self, teacher: Outputs | None) -> Tensor:
        """The teacher's values, standardized or not: their range is what an action can cost."""
        assert teacher is not None
        return bounded(teacher.logits)

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The weighted cross-entropy, ≥ 0."""
        errors, costs = F.cross_entropy(student, teacher.argmax(dim=-1), reduction="none"), _costs(teacher)
        return (costs / or_one(costs.sum()) * errors).sum()

    def target(self, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The teacher's best action as rows (B, C) that are l there, and 0 elsewhere."""
        values = self.given(teacher)
        best = F.one_hot(values.argmax(dim=-1), values.shape[-1])
        return _costs(values)[:, None] * best


def _costs(values: Tensor) -> Tensor:
    """What the worst action costs (B,), by the values (B, C) of all."""
    return values.amax(dim=-1) - values.amin(dim=-1)
