"""Losses that weigh several teachers by themselves, sample by sample or step by step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdrun.contracts import HIDDEN, Batch, Context, JointLoss, Outputs, Published, Taps
from kdrun.losses.adapters import pointwise, pool
from kdrun.losses.base import LayerConfig, LogitConfig, Temperature, require_maps
from kdrun.losses.embeddings import teacher_classifier
from kdrun.losses.matching import chosen_layer, last_stage, with_layers
from kdrun.losses.numerics import bounded, certainty, exact, fixed, full, relative_entropy, z_scores
from kdrun.taps import LayerTable


class JointConfig(LogitConfig):
    """Options of losses on the logits of several teachers; with z-scores the weights, too, are of z-scores."""

    temperature: Temperature = 4.0
    """softens all distributions"""


class _JointLogits(JointLoss):
    """Σ over teachers of weighted KL divergences, T² and all; a subclass weighs them."""

    config: JointConfig

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch) -> Tensor:  # type: ignore[override]  # teachers by name: a JointLoss
        """The weighted sum, ≥ 0."""
        with exact(student.logits):
            ours = self._seen(full(student.logits))
            theirs = torch.stack([self._seen(bounded(said.logits)) for said in teachers.values()])
            t = self.temperature
            log_q = F.log_softmax(ours / t, dim=-1)
            each = torch.stack([relative_entropy(F.softmax(z / t, dim=-1), log_q) for z in theirs])
            return t**2 * (self.weights(ours.detach(), theirs, batch) * each).mean(dim=1).sum()

    @abstractmethod
    def weights(self, student: Tensor, teachers: Tensor, batch: Batch) -> Tensor:
        """Weights (M, B) or (M, 1), from logits (B, C) and (M, B, C), none of them with a gradient."""

    def _seen(self, logits: Tensor) -> Tensor:
        return z_scores(logits) if self.config.logit_standardization else logits


class EntropyWeighted(_JointLogits):
    """Entropy-based weights: T²/(B·M) · Σ_i,b w_i,b · KL_i,b, w_i,b = 1 − H_i,b / Σ_k H_k,b.

    Logits (B, C) of the student and of M teachers; H is the entropy of a teacher's softmax at temperature 1.

    Source: Kwon, Na, Lee, Kim, "Adaptive Knowledge Distillation Based on Entropy", 2020; code: Zhang, Chen, Wang,
    2022, for the authors' was never published.
    Trap: the weights of one sample sum to M − 1, not to 1; p log p of an underflowing p is 0, not NaN.
    """

    class Config(JointConfig):
        """Options of ``ebkd``."""

        kind: Literal["ebkd"]

    config: Config
    published = {
        "ebkd": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "ebkd", "weight": 1}],
            source="Kwon, Na, Lee, Kim, Adaptive Knowledge Distillation Based on Entropy, 2020; weights for CIFAR-100: "
            "Zhang, Chen, Wang, Confidence-Aware Multi-Teacher Knowledge Distillation, 2022",
        )
    }

    def weights(self, student: Tensor, teachers: Tensor, batch: Batch) -> Tensor:
        """By certainty."""
        return certainty(teachers) / len(teachers)


class ConfidenceAware(_JointLogits):
    """Confidence-aware weights: T²/(B·M) · Σ_i,b w_i,b · KL_i,b, w_i,b = (1 − softmax_i CE(z_i,b, y_b)) / (M − 1).

    Logits (B, C) of the student and of M teachers. Samples without a label weigh all teachers alike.

    Source: Zhang, Chen, Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation", 2022.
    Trap: the weights sum to 1 already; the further 1/M is the code's.
    """

    class Config(JointConfig):
        """Options of ``ca-mkd``."""

        kind: Literal["ca-mkd"]

    config: Config
    published = {
        "ca-mkd": Published(
            losses=[
                {"kind": "ce", "weight": 1},
                {"kind": "ca-mkd", "weight": 1},
                {"kind": "ca-mkd-feature", "weight": 50, "first_epoch": 2},
            ],
            source="Zhang, Chen, Wang, Confidence-Aware Multi-Teacher Knowledge Distillation, 2022, for CIFAR-100",
        )
    }

    def weights(self, student: Tensor, teachers: Tensor, batch: Batch) -> Tensor:
        """By the cross-entropy of each teacher."""
        return _confidence(teachers, batch.main_labels) / len(teachers)


def _confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """(1 − softmax over teachers of the cross-entropy) / (M − 1), (M, B), of logits (M, B, C); 1/M without a label."""
    errors = [F.cross_entropy(z, labels, ignore_index=HIDDEN, reduction="none") for z in logits]
    return (1 - F.softmax(torch.stack(errors), dim=0)) / max(len(logits) - 1, 1)


class ConfidenceAwareFeatures(JointLoss):
    """Confidence-aware weights, features: 1/(B·M) · Σ_i,b w_i,b · mean (r_i(f_s)[b] − f_i[b])².

    Taps one map (B, D, H, W) of each network, the last stage by default; the student's is averaged down to the
    first teacher's size, or interpolated up to it, that one to the next teacher's, and so on; r_i is
    ReLU(BN(1×1 convolution)). w is as in ca-mkd, of the cross-entropies of what teacher i's own classifier
    makes of the means of r_i(f_s), with their gradient. Samples without a label weigh all teachers alike.

    Source: Zhang, Chen, Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation", 2022.
    Trap: it is the student's projected map that is classified, and the weights are not held constant. With teachers of
    several sizes their order counts. The authors leave the term out of the first epoch.
    """

    class Config(LayerConfig):
        """Options of ``ca-mkd-feature``."""

        kind: Literal["ca-mkd-feature"]

    config: Config
    on_logits = False
    ours: str
    theirs: dict[str, str]

    def taps(  # type: ignore[override]  # teachers by name: a JointLoss
        self, student: LayerTable, teachers: Mapping[str, LayerTable | None]
    ) -> Mapping[str, Taps]:
        """One map of each network."""
        kind = self.config.kind
        chosen = chosen_layer(student, self.config.student_layer, last_stage(student), "student_layer")
        self.ours = student.as_map(chosen)
        self.theirs = {}
        for name, found in teachers.items():
            teacher = with_layers(found, kind)
            layer = teacher.as_map(
                chosen_layer(teacher, self.config.teacher_layer, last_stage(teacher), "teacher_layer")
            )
            require_maps(kind, "teacher_layer", (student, self.ours), (teacher, layer))
            self.theirs[name] = layer
        return {name: Taps((self.ours,), (layer,)) for name, layer in self.theirs.items()}

    def build(self, contexts: Mapping[str, Context]) -> None:  # type: ignore[override]  # teachers by name: a JointLoss
        """Make the projections, and copy the teachers' classifiers."""
        self.projections, self.classifiers = nn.ModuleList(), nn.ModuleList()
        for name, context in contexts.items():
            assert context.teacher is not None
            ours = tuple(context.student.features[self.ours].shape[1:])
            theirs = tuple(context.teacher.features[self.theirs[name]].shape[1:])
            self.projections.append(nn.Sequential(*pointwise(ours, theirs, bias=True), nn.ReLU()))
            self.classifiers.append(teacher_classifier(context, self.config.kind, self.theirs[name]))

    def forward(self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch) -> Tensor:  # type: ignore[override]  # teachers by name: a JointLoss
        """The weighted sum, ≥ 0."""
        f = full(student.features[self.ours])
        height = f.shape[2]
        errors, logits = [], []
        for (name, said), project, classify in zip(
            teachers.items(), self.projections, self.classifiers, strict=True
        ):
            theirs = fixed(said.features[self.theirs[name]])
            f = _resized(f, theirs, shrinks=height >= theirs.shape[2])
            projected = full(project(f))
            with exact(f):
                errors.append((projected - theirs).square().flatten(1).mean(dim=1))
                logits.append(classify(projected.mean(dim=(2, 3))))
        weights = _confidence(torch.stack(logits), batch.main_labels)
        return (weights * torch.stack(errors)).sum() / (len(batch) * len(teachers))


def _resized(f: Tensor, like: Tensor, shrinks: bool) -> Tensor:
    """A map (B, D, ·, ·) averaged or interpolated to another's height and width."""
    if f.shape[2:] == like.shape[2:]:
        return f
    height, width = like.shape[2:]
    return pool(f, height, width) if shrinks else F.interpolate(f, (height, width), mode="bilinear")


class AdaptiveEnsemble(_JointLogits):
    """Adaptive ensemble: T² · Σ_i a_i · mean_b KL_i, with the a that makes the teachers agree on a direction.

    a minimises ‖Σ_i a_i g_i‖² with Σ a_i = 1 and 0 ≤ a_i ≤ `cap` (at least 1/M); g_i is the mean over the batch of the
    gradient of KL_i to the student's logits. a carries no gradient. Logits (B, C) of the student and of M teachers.

    Source: Du et al., "Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space", 2020.
    Trap: solved to 1e-8 of the objective here; the authors' one-class SVM is off by up to 5e-4 in a. On a GPU each step
    waits for M×M numbers.
    """

    class Config(JointConfig):
        """Options of ``aekd``."""

        kind: Literal["aekd"]
        cap: float = Field(default=0.6, gt=0, le=1)
        """the largest weight of a teacher"""

    config: Config
    published = {
        "aekd": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "aekd", "weight": 0.9}],
            source="Du et al., Agree to Disagree: Adaptive Ensemble Knowledge Distillation in Gradient Space, 2020",
        )
    }

    def weights(self, student: Tensor, teachers: Tensor, batch: Batch) -> Tensor:
        """The same for all samples, (M, 1)."""
        t = self.temperature
        gradients = (F.softmax(student / t, dim=-1) - F.softmax(teachers / t, dim=-1)).mean(dim=1)
        gram = (gradients @ gradients.T).double().cpu().numpy()
        return torch.from_numpy(_least_norm(gram, self.config.cap)).to(student)[:, None]


def _least_norm(gram: np.ndarray, cap: float) -> np.ndarray:
    """The weights (M,) on the simplex, none above ``cap``, that minimise aᵀ G a."""
    from scipy.optimize import minimize

    count = len(gram)
    start = np.full(count, 1 / count)
    scale = np.trace(gram)
    if scale == 0 or cap * count <= 1:
        return start
    gram = gram / scale
    found = minimize(
        lambda a: a @ gram @ a,
        start,
        jac=lambda a: 2 * gram @ a,
        bounds=[(0, cap)] * count,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 200},
    )
    weights: np.ndarray = found.x
    return weights
