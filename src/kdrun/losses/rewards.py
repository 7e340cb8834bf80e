"""Losses of students that act by themselves, and learn from the rewards that they get."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdrun.contracts import Batch, Context, Loss, LossConfig, Outputs, Published, Taps
from kdrun.losses.numerics import exact, full, own
from kdrun.taps import LayerTable

SMALL = 1e-8
"""Added to a standard deviation that is divided by."""


class RewardConfig(LossConfig):
    """Options of every loss of rewards."""

    gamma: float = Field(default=0.99, ge=0, le=1)
    """γ: what a reward counts that comes a step later"""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """λ of the advantages: 0 trusts what the student expects after one step, 1 what it got alone"""


class RewardLoss(Loss):
    """A loss on what came of the student's own actions.

    Its ``critic`` tells from the student's embedding (B, D) how much reward is to be expected; it is trained along with
    the student and thrown away when that has learnt.
    """

    needs_teacher = False
    learns_unlabelled = True
    of_rewards = True
    whole_batch = True
    config: RewardConfig

    @property
    def gamma(self) -> float:
        """γ."""
        return self.config.gamma

    @property
    def gae_lambda(self) -> float:
        """λ."""
        return self.config.gae_lambda

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """The student's embedding."""
        self.layer = student.pooled
        return Taps((self.layer,))

    def build(self, context: Context) -> None:
        """Make the critic."""
        self.critic = nn.Linear(context.student.features[self.layer].flatten(1).shape[1], 1)

    def value(self, student: Outputs) -> Tensor:
        """The rewards (B,) that are to be expected from each state on, discounted."""
        seen = full(student.features[self.layer]).flatten(1)
        with exact(seen):
            expected: Tensor = self.critic(seen).squeeze(1)
        return expected


class ProximalPolicy(RewardLoss):
    """Proximal policy optimisation: −mean min(ρ·A, clip(ρ, 1 − ε, 1 + ε)·A) + v · mean (V − R)² − e · mean H.

    Logits (B, C). ρ is how many times as probable the student makes its own action as it was when it acted, A the
    action's advantage, by generalised advantage estimation, R the outcome that follows from it, V the critic's value
    (B,) and H the entropy of the student's probabilities. A is normalised in each batch.

    Source: Schulman, Wolski, Dhariwal, Radford, Klimov, "Proximal Policy Optimization Algorithms", 2017, equation 9;
    A: Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation", 2016.
    Trap: the paper normalises no advantage, and most codes do; some halve the squared error of V, or clip it, too.
    """

    class Config(RewardConfig):
        """Options of ``ppo``."""

        kind: Literal["ppo"]
        clip: float = Field(default=0.2, gt=0, lt=1)
        """ε: by how much an action may become more or less probable before that is worth nothing"""
        value_weight: float = Field(default=0.5, ge=0)
        """v: what the critic's squared error counts"""
        entropy_weight: float = Field(default=0.0, ge=0)
        """e: what it is worth to stay undecided"""
        normalize: bool = True
        """take the z-scores of each batch's advantages"""

    config: Config
    published = {
        "ppo": Published(
            losses=[{"kind": "ppo"}],
            source="Schulman et al., Proximal Policy Optimization Algorithms, 2017",
        ),
        "kickstarting": Published(
            losses=[
                {"kind": "ppo"},
                {"kind": "policy-kl", "weight": 1, "temperature": 1, "schedule": {"kind": "linear"}},
            ],
            source="Schmitt et al., Kickstarting Deep Reinforcement Learning, 2018; there the student learns by IMPALA "
            "or A3C, and the teacher's weight may come from population based training",
        ),
    }

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The sum of the three."""
        acted = batch.acted
        assert acted is not None, "the config has the student act"
        log_p = F.log_softmax(full(student.logits), dim=-1)
        ratio = (own(log_p, acted.action) - acted.log_probability).exp()
        advantage = acted.advantage
        if self.config.normalize and len(advantage) > 1:
            advantage = (advantage - advantage.mean()) / (advantage.std() + SMALL)
        kept = ratio.clamp(1 - self.config.clip, 1 + self.config.clip)
        surrogate = torch.minimum(ratio * advantage, kept * advantage).mean()
        error = F.mse_loss(self.value(student), acted.outcome)
        entropy = -(log_p.exp() * log_p).sum(dim=-1).mean()
        return self.config.value_weight * error - surrogate - self.config.entropy_weight * entropy
