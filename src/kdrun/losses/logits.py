"""Losses on the logits of one teacher."""

from __future__ import annotations

import math
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdrun.contracts import LEFT_OUT, Batch, Context, Loss, Outputs, Published, Taps
from kdrun.losses.base import LogitConfig, LogitLoss, OnLogits, Temperature, main_classes
from kdrun.losses.numerics import (
    bounded,
    exact,
    full,
    log_relative_entropy,
    others,
    own,
    relative_entropy,
)
from kdrun.losses.recipes import CRD, WARM_UP
from kdrun.taps import LayerTable

HOTTEST = 20.0
"""What a learned temperature may be above 1."""


class SoftTargets(LogitLoss):
    """Knowledge distillation: T² · mean_b D(softmax(z_t/T), softmax(z_s/T)).

    Logits (B, C) of both. D is the divergence of the softened probabilities p (teacher) and q (student):
    forward-kl Σ p log(p/q); reverse-kl Σ q log(q/p); js the mean of both to (p + q)/2; mse Σ (p − q)²;
    alpha-beta −1/(αβ) Σ (pᵅqᵝ − α/(α+β) pᵅ⁺ᵝ − β/(α+β) qᵅ⁺ᵝ) with its limits at 0: α = 1, β = 0 is forward-kl,
    α = 0, β = 1 is reverse-kl. T² keeps the size of the gradient when the temperature changes.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015; alpha-beta: Wang et al.,
    "ABKD: Pursuing a Proper Allocation of the Probability Mass in Knowledge Distillation via α-β-Divergence", 2025.
    Trap: `reduction: mean` over B·C instead of B makes the term C times smaller (DeiT and Tf-KD do so), and some
    codes leave T² out, ABKD's too: its weights are not made for this form. Its code has 1/α and 1/β in the limits where
    1/α² and 1/β² belong.
    """

    class Config(LogitConfig):
        """Options of ``kd``."""

        kind: Literal["kd"]
        temperature: Temperature = 4.0
        """softens both distributions; 1 leaves them as they are"""
        divergence: Literal["forward-kl", "reverse-kl", "js", "alpha-beta", "mse"] = "forward-kl"
        """how the student's probabilities are compared with the teacher's"""
        alpha: float = Field(default=0.8, ge=0)
        """alpha-beta: the exponent of the teacher's probabilities, 0 or at least 0.01"""
        beta: float = Field(default=0.3, ge=0)
        """alpha-beta: the exponent of the student's probabilities, 0 or at least 0.01"""
        reduction: Literal["batchmean", "mean"] = "batchmean"
        """batchmean: the sum over classes, the mean over samples; mean: the mean over both"""

        @model_validator(mode="after")
        def _not_nothing(self) -> Self:
            if not self.alpha and not self.beta:
                raise ValueError("'alpha' or 'beta' must be above 0")
            if any(0 < exponent < 0.01 for exponent in (self.alpha, self.beta)):
                raise ValueError("'alpha' and 'beta' must be 0 or at least 0.01, below which rounding wins")
            return self

    config: Config
    published = {
        "kd": Published(
            losses=[{"kind": "ce", "weight": 0.1}, {"kind": "kd", "weight": 0.9, "temperature": 4}],
            source="Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015; weights for CIFAR-100: "
            f"{CRD}",
            tune={"kd.temperature": {"low": 1, "high": 20, "log": True}},
        ),
        "logit-standardization": Published(
            losses=[
                {"kind": "ce", "weight": 0.1},
                {"kind": "kd", "weight": 9, "temperature": 2, "logit_standardization": True},
            ],
            source="Sun et al., Logit Standardization in Knowledge Distillation, 2024",
            tune={"kd.weight": [3, 6, 9, 12, 15], "kd.temperature": [2, 3]},
        ),
        "deit-soft": Published(
            losses=[
                {"kind": "ce", "weight": 0.5},
                {"kind": "kd", "weight": 0.5, "temperature": 1, "reduction": "mean"},
            ],
            source="Touvron et al., Training Data-Efficient Image Transformers & Distillation through Attention, "
            "2021; the code's defaults",
        ),
        "tf-kd-self": Published(
            losses=[
                {"kind": "ce", "weight": 0.05},
                {"kind": "kd", "weight": 47.5, "temperature": 6, "reduction": "mean"},
            ],
            source="Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization, 2020, for "
            "ResNet18 on CIFAR-100; the teacher is to be a trained copy of the student",
        ),
        "function-matching": Published(
            losses=[{"kind": "kd", "weight": 1, "temperature": 1}],
            source="Beyer et al., Knowledge Distillation: A Good Teacher Is Patient and Consistent, 2022; no "
            "labels, and teacher and student see the same mixed pictures: write `training: {mixup: 1}` in the method",
        ),
    }

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The divergence, ≥ 0."""
        log_q = F.log_softmax(student / self.temperature, dim=-1)
        total = self._divergences(teacher / self.temperature, log_q).mean() * self.temperature**2
        return total / student.shape[1] if self.config.reduction == "mean" else total

    def _divergences(self, teacher: Tensor, log_q: Tensor) -> Tensor:
        """Of each sample (B,), from the teacher's softened logits and the student's log-probabilities."""
        p, kind = F.softmax(teacher, dim=-1), self.config.divergence
        if kind == "forward-kl":
            return relative_entropy(p, log_q)
        if kind == "mse":
            return (p - log_q.exp()).square().sum(dim=-1)
        log_p = F.log_softmax(teacher, dim=-1)
        if kind == "reverse-kl":
            return log_relative_entropy(log_q, log_p)
        if kind == "js":
            log_middle = torch.logaddexp(log_p, log_q) - math.log(2)
            return (log_relative_entropy(log_p, log_middle) + log_relative_entropy(log_q, log_middle)) / 2
        return _alpha_beta(log_p, log_q, self.config.alpha, self.config.beta).sum(dim=-1)


def _alpha_beta(log_p: Tensor, log_q: Tensor, alpha: float, beta: float) -> Tensor:
    """The terms (B, C) of the alpha-beta divergence; of what is 0 the limit."""
    if beta == 0:
        return _limit(log_p * alpha, log_q * alpha) / alpha**2
    if alpha == 0:
        return _limit(log_q * beta, log_p * beta) / beta**2
    both = alpha + beta
    mixed = (alpha * log_p + beta * log_q).exp()
    rest = (alpha * (both * log_p).exp() + beta * (both * log_q).exp()) / both
    return (rest - mixed) / (alpha * beta)


def _limit(log_a: Tensor, log_b: Tensor) -> Tensor:
    """a log(a/b) − a + b."""
    return log_a.exp() * (log_a - log_b) - log_a.exp() + log_b.exp()


class HardTargets(LogitLoss):
    """Hard-label distillation: cross-entropy of the student to the teacher's most probable class.

    Logits (B, C) of both; no temperature.

    Source: Touvron et al., "Training Data-Efficient Image Transformers & Distillation through Attention",
    2021.
    Trap: there it is taken on a second, distillation head, as here with `distillation_token: true` of a `vit`; with
    one head both terms share the logits.
    """

    class Config(LogitConfig):
        """Options of ``hard``."""

        kind: Literal["hard"]

    config: Config
    published = {
        "hard": Published(
            losses=[{"kind": "ce", "weight": 0.5}, {"kind": "hard", "weight": 0.5}],
            source="Touvron et al., Training Data-Efficient Image Transformers & Distillation through "
            "Attention, 2021",
        ),
        "policy-nll": Published(
            losses=[{"kind": "hard", "weight": 1}],
            source="Rusu et al., Policy Distillation, 2015: the action of the largest Q-value",
        ),
    }

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The cross-entropy, ≥ 0; at student = teacher it is the teacher's own doubt, not 0."""
        return F.cross_entropy(student, teacher.argmax(dim=-1))

    def target(self, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The teacher's most probable class as one-hot rows (B, C)."""
        logits = self.given(teacher)
        return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)


class LogitMSE(LogitLoss):
    """Regression on logits: mean over B·C of (z_s − z_t)².

    Logits (B, C) of both. The published mix is this term alone: in the paper the student sees no labels.

    Source: Ba, Caruana, "Do Deep Nets Really Need to be Deep?", 2014.
    Trap: a sum over classes instead of the mean makes the term C times larger. It also matches the logits'
    common offset, which no prediction depends on.
    """

    class Config(LogitConfig):
        """Options of ``logit-mse``."""

        kind: Literal["logit-mse"]

    config: Config
    published = {
        "logit-mse": Published(
            losses=[{"kind": "logit-mse", "weight": 1}],
            source="Ba, Caruana, Do Deep Nets Really Need to be Deep?, 2014",
        ),
        "policy-mse": Published(
            losses=[{"kind": "logit-mse", "weight": 1}],
            source="Rusu et al., Policy Distillation, 2015: of Q-values, there summed over the actions",
        ),
    }

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The mean squared error, ≥ 0."""
        return F.mse_loss(student, teacher)


class DecoupledKD(LogitLoss):
    """Decoupled distillation: T² · mean_b (α·TCKD + β·NCKD).

    Logits (B, C) of both. With p the probability of the sample's class at temperature T, TCKD is the KL
    divergence of (p, 1 − p); NCKD that of the softmaxes over the C − 1 other classes. A sample without a label
    is taken for what the teacher takes it for.

    Source: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", 2022.
    Trap: the mask that removes the class belongs after the division by T; logarithms of summed probabilities
    underflow where the teacher is sure, log-sum-exp does not. β was tuned for each pair, from 2 to 8.
    """

    class Config(LogitConfig):
        """Options of ``dkd``."""

        kind: Literal["dkd"]
        alpha: float = Field(default=1.0, ge=0)
        """factor of the divergence between the class and all others"""
        beta: float = Field(default=8.0, ge=0)
        """factor of the divergence among the others"""
        temperature: Temperature = 4.0
        """softens both distributions"""

    config: Config
    published = {
        "dkd": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "dkd", "weight": 1, "schedule": WARM_UP}],
            source="Zhao, Cui, Song, Qiu, Liang, Decoupled Knowledge Distillation, 2022, for resnet32x4 to "
            "resnet8x4 on CIFAR-100, warm-up of 20 of 240 epochs",
            tune={"dkd.beta": {"low": 1, "high": 10}},
        )
    }

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The weighted sum, ≥ 0."""
        classes, t = main_classes(batch, teacher), self.temperature
        inside = relative_entropy(_bins(teacher / t, classes).exp(), _bins(student / t, classes))
        among = relative_entropy(
            F.softmax(others(teacher, classes) / t, dim=-1),
            F.log_softmax(others(student, classes) / t, dim=-1),
        )
        return t**2 * (self.config.alpha * inside + self.config.beta * among).mean()


def _bins(logits: Tensor, classes: Tensor) -> Tensor:
    """Log-probabilities (B, 2) of each row's class and of all others together."""
    log_p = F.log_softmax(logits, dim=-1)
    return torch.stack([own(log_p, classes), others(log_p, classes).logsumexp(dim=-1)], dim=-1)


class NormalizedKD(LogitLoss):
    """Normalised distillation: mean_b −p_t(y) log p_s(y) − γ·T² · mean_b Σ_{c≠y} q_t(c) log q_s(c).

    Logits (B, C) of both. p is the softmax at temperature 1, q the softmax at T over all classes but the
    sample's own y. A sample without a label counts for the class that the teacher predicts.

    Source: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
    Normalized Loss and Customized Soft Labels", 2023.
    Trap: both parts are cross-entropies, so the loss is not 0 at student = teacher.
    """

    class Config(LogitConfig):
        """Options of ``nkd``."""

        kind: Literal["nkd"]
        gamma: float = Field(default=1.5, ge=0)
        """factor of the other classes' part"""
        temperature: Temperature = 1.0
        """softens the distributions of the other classes"""

    config: Config
    published = {
        "nkd": Published(
            losses=[
                {"kind": "ce", "weight": 1},
                {"kind": "nkd", "weight": 1, "gamma": 3.5, "temperature": 3},
            ],
            source="Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, 2023, for CIFAR-100",
        )
    }

    target = Loss.target  # none: the own class is to be as sure as can be, whatever the others

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The sum of both cross-entropies, ≥ 0."""
        classes, t = main_classes(batch, teacher), self.temperature
        log_p = own(F.log_softmax(student, dim=-1), classes)
        q = F.softmax(others(teacher, classes) / t, dim=-1)
        log_q = F.log_softmax(others(student, classes) / t, dim=-1)
        itself = -own(F.softmax(teacher, dim=-1), classes) * log_p
        return (itself - self.config.gamma * t**2 * (q * log_q).sum(dim=-1)).mean()


class CorrelationKD(LogitLoss):
    """DIST: τ² · [β·(1 − mean_b ρ(P_s[b,:], P_t[b,:])) + γ·(1 − mean_c ρ(P_s[:,c], P_t[:,c]))].

    Logits (B, C) of both; P are the softmaxes at temperature τ and ρ is Pearson's correlation, over the classes
    of each sample and over the samples of each class. A correlation with a constant is 0.

    Source: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", 2022.
    Trap: 1e-8 is added to the product of the norms, not to each; the code for segmentation has no τ at all. Where a
    student's row or column is constant the gradient is as large as that allows.
    """

    class Config(LogitConfig):
        """Options of ``dist``."""

        kind: Literal["dist"]
        beta: float = Field(default=1.0, ge=0)
        """factor of the correlations over classes"""
        gamma: float = Field(default=1.0, ge=0)
        """factor of the correlations over samples"""
        temperature: Temperature = 4.0
        """τ: softens both distributions"""

    config: Config
    published = {
        "dist": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "dist", "weight": 2}],
            source="Huang, You, Wang, Qian, Xu, Knowledge Distillation from A Stronger Teacher, 2022, for CIFAR-100",
        )
    }

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Between 0 and 2·τ²·(β + γ)."""
        t = self.temperature
        ours, theirs = F.softmax(student / t, dim=-1), F.softmax(teacher / t, dim=-1)
        between = 1 - _correlation(ours, theirs).mean()
        within = 1 - _correlation(ours.T, theirs.T).mean()
        return t**2 * (self.config.beta * between + self.config.gamma * within)


def _correlation(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation of each row of two matrices, (N, M) → (N,)."""
    x, y = x - x.mean(dim=1, keepdim=True), y - y.mean(dim=1, keepdim=True)
    norms = torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(y, dim=1)
    return (x * y).sum(dim=1) / (norms + 1e-8)


class MultiLevelKD(OnLogits):
    """Multi-level logit distillation, as the authors' code computes it, with P the softmax at temperature T.

    instance: m·Σ_T kd_T(weak) + Σ_{strong T} kd_T(strong) + Σ_{unmasked T} kd_T(weak);
    batch: m·Σ_T ‖P_t P_tᵀ − P_s P_sᵀ‖²_F / B; class: m_c·Σ_T ‖P_tᵀ P_t − P_sᵀ P_s‖²_F / C.
    Logits (B, C) of both, for the batch's own view (weak) and for another one, more strongly augmented; without
    one the same view stands for both. m is the share of samples of which the teacher is no surer than of the
    median sample, m_c the share of classes. Logit standardization applies to the kd terms only.

    Source: Jin, Wang, Lin, "Multi-Level Logit Distillation", 2023.
    Trap: that mask multiplies a mean that is taken already, and is but a factor; `confidence: sample` masks each
    sample and class, as the paper says. Two of the five strong terms see the weak view (`unmasked_temperatures`).
    Part of the published gain comes from the second view.
    """

    class Config(LogitConfig):
        """Options of ``mlkd``."""

        kind: Literal["mlkd"]
        temperatures: list[Temperature] = Field(default=[4, 2, 3, 5, 6], min_length=1)
        """temperatures of the masked terms, all on the weak view"""
        strong_temperatures: list[Temperature] = [4, 3, 5]
        """temperatures of the terms on the strong view"""
        unmasked_temperatures: list[Temperature] = [2, 6]
        """temperatures of the further terms on the weak view"""
        instance_weight: float = Field(default=1.0, ge=0)
        """factor of the kd terms"""
        batch_weight: float = Field(default=1.0, ge=0)
        """factor of the similarities between samples"""
        class_weight: float = Field(default=1.0, ge=0)
        """factor of the similarities between classes"""
        confidence: Literal["code", "sample", "none"] = "code"
        """code: the factors m and m_c; sample: a mask of samples and classes; none: neither"""
        view: str | None = None
        """the strongly augmented view of the samples: `strong`, where the data set has a `strong_view`"""

    config: Config
    published = {
        "mlkd": Published(
            losses=[{"kind": "ce", "weight": 0.1}, {"kind": "mlkd", "weight": 0.9}],
            source="Jin, Wang, Lin, Multi-Level Logit Distillation, 2023, for CIFAR-100, where another ce of weight "
            "0.1 looks at the strong view",
        )
    }

    @property
    def temperature(self) -> float:
        """The first one."""
        return self.config.temperatures[0]

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """The strong view, if there is one."""
        return Taps(views=(self.config.view,) if self.config.view else ())

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The weighted sum of all parts, ≥ 0."""
        assert teacher is not None
        view = self.config.view
        strong = (student.views[view], teacher.views[view]) if view else (student, teacher)
        with exact(student.logits):
            return self._sum(*(_logits(*pair) for pair in ((student, teacher), strong)))

    def _sum(self, weak: tuple[Tensor, Tensor], strong: tuple[Tensor, Tensor]) -> Tensor:
        p = F.softmax(weak[1], dim=-1)
        samples, classes = self._mask(p.amax(dim=1)), self._mask(p.sum(dim=0))
        masked = torch.stack(
            [self._masked(*weak, t, samples, classes) for t in self.config.temperatures]
        ).sum()
        weak, strong = ((self.seen(s), self.seen(t)) for s, t in (weak, strong))
        plain = [_kd(*strong, t).mean() for t in self.config.strong_temperatures]
        plain += [_kd(*weak, t).mean() for t in self.config.unmasked_temperatures]
        return masked + self.config.instance_weight * sum(plain, torch.zeros_like(masked))

    def _masked(self, student: Tensor, teacher: Tensor, t: float, samples: Tensor, classes: Tensor) -> Tensor:
        """The masked terms of one temperature; ``samples`` (B,) and ``classes`` (C,) are the masks."""
        ours, theirs = F.softmax(student / t, dim=-1), F.softmax(teacher / t, dim=-1)
        instance = _kd(self.seen(student), self.seen(teacher), t)
        between = (theirs @ theirs.T - ours @ ours.T).square().sum(dim=1)
        within = (theirs.T @ theirs - ours.T @ ours).square().sum(dim=1)
        parts = (
            (self.config.instance_weight, instance, samples),
            (self.config.batch_weight, between, samples),
            (self.config.class_weight, within, classes),
        )
        return torch.stack([factor * (part * mask).mean() for factor, part, mask in parts]).sum()

    def _mask(self, confidence: Tensor) -> Tensor:
        """A factor for each entry: 1, whether it is at most the median, or the share of those."""
        low = (confidence <= confidence.quantile(0.5)).to(confidence.dtype)
        if self.config.confidence == "none":
            return torch.ones_like(low)
        return low if self.config.confidence == "sample" else low.mean().expand_as(low)


def _logits(student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    return full(student.logits), bounded(teacher.logits)


def _kd(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    """T² times the KL divergence of each sample, (B,)."""
    return t**2 * relative_entropy(F.softmax(teacher / t, dim=-1), F.log_softmax(student / t, dim=-1))


class WeightedSoftLabels(LogitLoss):
    """Weighted soft labels: T² · mean_b w_b · (−Σ_c p_t log p_s), w_b = 1 − exp(−CE_s,b / (CE_t,b + 1e-7)).

    Logits (B, C) of both; p at temperature T, CE to the labels at temperature 1, w without a gradient. A sample
    without a label is taken for what the teacher takes it for.

    Source: Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff
    Perspective", 2021.
    Trap: a cross-entropy, not a divergence: the teacher's entropy stays in, and the loss is not 0 at student =
    teacher.
    """

    class Config(LogitConfig):
        """Options of ``wsld``."""

        kind: Literal["wsld"]
        temperature: Temperature = 2.0
        """softens both distributions"""

    config: Config
    published = {
        "wsld": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "wsld", "weight": 2.25, "temperature": 4}],
            source="Zhou et al., Rethinking Soft Labels for Knowledge Distillation, 2021; weights for CIFAR-100: "
            "Yang et al., 2023",
        )
    }

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The weighted cross-entropy, ≥ 0."""
        classes, t = main_classes(batch, teacher), self.temperature
        ours, theirs = (F.cross_entropy(z.detach(), classes, reduction="none") for z in (student, teacher))
        weights = 1 - torch.exp(-ours / (theirs + 1e-7))
        soft = F.softmax(teacher / t, dim=-1) * F.log_softmax(student / t, dim=-1)
        return -(t**2) * (weights * soft.sum(dim=-1)).mean()


class TransformedTeacher(LogitLoss):
    """Transformed teacher matching: mean_b w_b · KL(softmax(γ·z_t) ‖ softmax(z_s)).

    Logits (B, C) of both. γ = 1/T makes the teacher softer, and the student has no temperature. `ttm`: w = 1;
    `wttm`: w_b = Σ_c softmax(z_t)_c^γ, which is larger the less sure the teacher is.

    Source: Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", 2024.
    Trap: no T², so the weight is large.
    """

    class Config(LogitConfig):
        """Options of ``ttm`` and ``wttm``."""

        kind: Literal["ttm", "wttm"]
        gamma: float = Field(default=0.1, gt=0)
        """the power of the teacher's probabilities, 1/T"""

    config: Config
    published = {
        "ttm": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "ttm", "weight": 45, "gamma": 0.1}],
            source="Zheng, Yang, Knowledge Distillation Based on Transformed Teacher Matching, 2024, for vgg13 to vgg8 "
            "on CIFAR-100",
        ),
        "wttm": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "wttm", "weight": 4, "gamma": 0.2}],
            source="Zheng, Yang, Knowledge Distillation Based on Transformed Teacher Matching, 2024; weight and γ are "
            "those of the authors' example with crd",
        ),
        "wttm-crd": Published(
            losses=[
                {"kind": "ce", "weight": 1},
                {"kind": "wttm", "weight": 4, "gamma": 0.2},
                {"kind": "crd", "weight": 0.8},
            ],
            source="Zheng, Yang, Knowledge Distillation Based on Transformed Teacher Matching, 2024, for CIFAR-100",
        ),
    }

    @property
    def temperature(self) -> float:
        """1/γ."""
        return 1 / self.config.gamma

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The divergence, ≥ 0."""
        gamma = self.config.gamma
        each = relative_entropy(F.softmax(gamma * teacher, dim=-1), F.log_softmax(student, dim=-1))
        if self.config.kind == "wttm":
            each = each * (gamma * F.log_softmax(teacher, dim=-1)).exp().sum(dim=-1)
        return each.mean()


class RefinedLogits(LogitLoss):
    """Refined logits: α·A² · mean_b SCD + β·T² · mean_b MCD.

    Logits (B, C) of both. SCD compares two bins at temperature A: the teacher's probability of its own top
    class with the student's of the label. MCD is the KL divergence at T over the classes that the teacher holds
    for less likely than the label, all others left out; with none left it is 0. A sample without a label counts
    for the class that the teacher predicts.

    Source: Sun et al., "Knowledge Distillation with Refined Logits", 2024.
    Trap: the bins are of two different classes where the teacher errs; what is left is strictly below the
    label's logit.
    """

    class Config(LogitConfig):
        """Options of ``rld``."""

        kind: Literal["rld"]
        alpha: float = Field(default=1.0, ge=0)
        """factor of the two bins"""
        beta: float = Field(default=8.0, ge=0)
        """factor of the classes below the label"""
        temperature: Temperature = 4.0
        """softens the distributions of the classes below the label"""
        alpha_temperature: Temperature = 1.0
        """A: softens the two bins"""

    config: Config
    published = {
        "rld": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "rld", "weight": 1, "schedule": WARM_UP}],
            source="Sun et al., Knowledge Distillation with Refined Logits, 2024, warm-up of 20 of 240 epochs",
        )
    }

    target = Loss.target  # none: two temperatures, and the label's own bin

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The weighted sum, ≥ 0."""
        classes, t, a = main_classes(batch, teacher), self.temperature, self.config.alpha_temperature
        top = _bins(teacher / a, teacher.argmax(dim=-1))
        bins = relative_entropy(top.exp(), _bins(student / a, classes))
        below = teacher < own(teacher, classes)[:, None]
        p = F.softmax((teacher / t).masked_fill(~below, LEFT_OUT), dim=-1)
        log_q = F.log_softmax((student / t).masked_fill(~below, LEFT_OUT), dim=-1)
        rest = relative_entropy(p, log_q) * below.any(dim=-1)
        return (self.config.alpha * a**2 * bins + self.config.beta * t**2 * rest).mean()


class CurriculumTemperature(LogitLoss):
    """Curriculum temperature: T² · mean_b KL(softmax(z_t/T) ‖ softmax(z_s/T)) with T learned against the student.

    Logits (B, C) of both. T = 1 + 20·sigmoid(θ), one θ for all samples, starting at 1. The gradient to θ is
    reversed and scaled by λ, which rises from 0 to 1 by half a cosine over the first epochs: the temperature
    makes the task harder, slowly.

    Source: Li et al., "Curriculum Temperature for Knowledge Distillation", 2023.
    Trap: the gradient to θ goes through both softmaxes and through T²; with weight decay θ decays too. For
    fixed T it is kd.
    """

    class Config(LogitConfig):
        """Options of ``ctkd``."""

        kind: Literal["ctkd"]
        curriculum_epochs: int = Field(default=10, ge=1)
        """epochs over which the reversed gradient grows to its full size"""

    config: Config
    published = {
        "ctkd": Published(
            losses=[{"kind": "ce", "weight": 0.1}, {"kind": "ctkd", "weight": 0.9}],
            source="Li et al., Curriculum Temperature for Knowledge Distillation, 2023, for CIFAR-100",
        )
    }
    strength: Tensor

    @property
    def temperature(self) -> float:
        """The one that is learned so far."""
        return 1 + HOTTEST * float(torch.sigmoid(self.theta.detach()))

    def build(self, context: Context) -> None:
        """Make θ."""
        self.theta = nn.Parameter(torch.ones(()))
        self.register_buffer("strength", torch.zeros(()), persistent=False)
        self.begin(0, 1)

    def begin(self, epoch: int, epochs: int) -> None:
        """Set λ."""
        rise = min((epoch + 1) / self.config.curriculum_epochs, 1.0)
        self.strength.fill_(0.5 * (1 - math.cos(math.pi * rise)))

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The divergence, ≥ 0."""
        still = self.theta.detach()
        t = 1 + HOTTEST * torch.sigmoid(still - self.strength * (self.theta - still))
        log_p, log_q = F.log_softmax(teacher / t, dim=-1), F.log_softmax(student / t, dim=-1)
        return t**2 * log_relative_entropy(log_p, log_q).mean()


class BinaryKD(LogitLoss):
    """Binary distillation: mean over B·C of the binary cross-entropy of σ(z_s) to softmax(z_t).

    Logits (B, C) of both; no temperature. Its minimum is where σ(z_s) = softmax(z_t).

    Source: Hao et al., "Revisit the Power of Vanilla Knowledge Distillation: from Small Scale to Large Scale",
    2023.
    Trap: the student's side is a sigmoid, the teacher's a softmax, so the loss is not 0 at student = teacher.
    """

    class Config(LogitConfig):
        """Options of ``binary-kd``."""

        kind: Literal["binary-kd"]

    config: Config
    published = {
        "binary-kd": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "binary-kd", "weight": 1}],
            source="Hao et al., Revisit the Power of Vanilla Knowledge Distillation, 2023; the code's defaults",
        )
    }

    target = Loss.target  # none: a sigmoid is to match, not a softmax

    def divergence(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The cross-entropy, ≥ 0."""
        return F.binary_cross_entropy_with_logits(student, F.softmax(teacher, dim=-1))
