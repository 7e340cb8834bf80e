"""Losses on features, one pair of layers at a time."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdrun.contracts import Batch, Context, Loss, LossConfig, Outputs, Published, Taps
from kdrun.errors import Mismatch
from kdrun.losses.adapters import Shape, pointwise, regressor, to_smaller
from kdrun.losses.base import (
    LayerConfig,
    LayerLoss,
    OnLayer,
    OnStages,
    StagesConfig,
    StagesLoss,
    Temperature,
)
from kdrun.losses.matching import FORMS, Pair, of_one_form, stage_pairs, with_layers
from kdrun.losses.numerics import fixed, full, unit
from kdrun.losses.recipes import CRD, FIRST
from kdrun.taps import LayerTable


class Hint(Loss):
    """FitNet hint: mean over all elements of (r(f_s) − f_t)²; the regressor r trains with the student.

    Taps one pair of layers. Maps (B, D, H, W): r = ReLU(BN(conv)), see ``MapRegressor``. Its
    kernel is 1 + H_s − H_t for a student's map of the same or a larger size, 3×3 with stride 2 for twice the
    size, 4×4 transposed for half; smaller by another ratio it is 3×3, and the teacher is pooled. For vectors
    (B, D) and token sequences (B, T, D) of equal T, r is linear, and left out where the widths agree. Layers of two
    forms, or sequences of unequal T, are first made maps (`:map`, where the places of tokens are known), else vectors
    (`:mean`, over tokens and places).

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", 2015.
    Trap: it is a mean, not a sum per sample; and a student's map more than twice as large costs a kernel of
    nearly its own size, so better name layers whose sizes are close.
    """

    class Config(LossConfig):
        """Options of ``hint``."""

        kind: Literal["hint"]
        student_layer: str | None = None
        """the student's layer; with neither layer named, the middle pair of stages (of two, the deeper)"""
        teacher_layer: str | None = None
        """the teacher's layer"""
        adapter: Literal["auto", "none", "regressor"] = "auto"
        """auto: a regressor, but for vectors and tokens of equal width; none: plain MSE; regressor: always"""
        relu: bool = True
        """end the regressor of maps with a ReLU, as the teacher's maps do"""

        @model_validator(mode="after")
        def _both_or_neither(self) -> Self:
            if (self.student_layer is None) != (self.teacher_layer is None):
                raise ValueError("name both 'student_layer' and 'teacher_layer', or neither")
            return self

    config: Config
    on_logits = False
    published = {
        "hint": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "hint", "weight": 100}],
            source=f"Romero et al., FitNets: Hints for Thin Deep Nets, 2015; weights for CIFAR-100: {CRD}",
        ),
        "fitnet": Published(
            losses=[
                {"kind": "ce", "weight": 0.5},
                {"kind": "kd", "weight": 0.5},
                {"kind": "hint", "weight": 1},
            ],
            stages=[
                {"share": 0.2, "losses": ["hint"], "train": ["adapters", "body"]},
                {"losses": ["ce", "kd"]},
            ],
            source="Romero et al., FitNets: Hints for Thin Deep Nets, 2015, in the paper's two stages: the body up "
            "to the hint first, then kd",
        ),
    }
    pair: Pair
    regressor: nn.Module

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """One layer of each; raises ``Mismatch`` where their shapes cannot be reconciled."""
        teacher = with_layers(teacher, "hint")
        self.pair = ours, theirs = of_one_form(self._choose(student, teacher), student, teacher)
        self._reconcile(
            (f"layer '{ours}' of {student.owner}", student.shapes[ours]),
            (f"layer '{theirs}' of {teacher.owner}", teacher.shapes[theirs]),
        )
        return Taps((ours,), (theirs,))

    def build(self, context: Context) -> None:
        """Make the regressor."""
        assert context.teacher is not None
        ours = tuple(context.student.features[self.pair[0]].shape[1:])
        theirs = tuple(context.teacher.features[self.pair[1]].shape[1:])
        plain = self.config.adapter == "none" or (
            self.config.adapter == "auto" and ours == theirs and len(ours) < 3
        )
        self.regressor = nn.Identity() if plain else regressor(ours, theirs, self.config.relu)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The mean squared error, ≥ 0. BatchNorm refuses a batch of one with maps of one pixel."""
        assert teacher is not None
        ours = full(self.regressor(full(student.features[self.pair[0]])))
        theirs = fixed(teacher.features[self.pair[1]])
        return F.mse_loss(*(to_smaller(ours, theirs) if ours.ndim == 4 else (ours, theirs)))

    def _choose(self, student: LayerTable, teacher: LayerTable) -> Pair:
        ours, theirs = self.config.student_layer, self.config.teacher_layer
        if ours is None or theirs is None:
            pairs = stage_pairs(student, teacher)
            return pairs[len(pairs) // 2]
        return student.resolve(ours, "student_layer"), teacher.resolve(theirs, "teacher_layer")

    def _reconcile(self, ours: tuple[str, Shape], theirs: tuple[str, Shape]) -> None:
        """Raise ``Mismatch`` where two (layer, shape) cannot be compared."""
        shapes = ours[1], theirs[1]
        forms = [FORMS.get(len(shape)) for shape in shapes]
        found = f"{ours[0]} gives {shapes[0]}, {theirs[0]} gives {shapes[1]}"
        if forms[0] != forms[1] or forms[0] is None:
            raise Mismatch(
                f"a hint compares two layers of one form, and {found}",
                f"name two layers that both give {', or both '.join(FORMS.values())}",
                "student_layer",
            )
        if self.config.adapter == "none" and shapes[0] != shapes[1]:
            raise Mismatch(
                f"without an adapter the shapes must agree, and {found}",
                "write adapter: auto, or name layers of one shape",
                "adapter",
            )


class AttentionTransfer(StagesLoss):
    """Attention transfer: over pairs of maps, the distance of a(f) = unit(flatten(mean_c f^p)).

    mode code: Σ_layers mean over B·H·W of (a_s − a_t)²; mode paper: Σ_layers mean_b ‖a_s − a_t‖₂ (Eq. 2).
    Taps maps (B, D, H, W) of any widths, or tokens whose places are known, all pairs of stages by default; the larger
    is pooled to the smaller.

    Source: Zagoruyko, Komodakis, "Paying More Attention to Attention", 2017.
    Trap: published weights belong to the code's form, which is about ten times smaller than the paper's; for
    odd p the sign of f counts. A sample whose map is all zero keeps a zero attention and gets no gradient; maps of
    one pixel have no attention and are left out.
    """

    class Config(StagesConfig):
        """Options of ``at``."""

        kind: Literal["at"]
        p: int = Field(default=2, ge=1, le=4)
        """power of the activations"""
        mode: Literal["code", "paper"] = "code"
        """code: mean of squares, which published weights are made for; paper: the L2 norm of each sample"""

    config: Config
    compares_places = True
    published = {
        "at": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "at", "weight": 1000}],
            source="Zagoruyko, Komodakis, Paying More Attention to Attention, 2017; weights for CIFAR-100: "
            f"{CRD}",
        )
    }

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of one pair, ≥ 0."""
        ours, theirs = (self._attention(f) for f in (student, teacher))
        if self.config.mode == "code":
            return F.mse_loss(ours, theirs)
        return torch.linalg.vector_norm(ours - theirs, dim=1).mean()

    def _attention(self, features: Tensor) -> Tensor:
        return unit(features.pow(self.config.p).mean(dim=1).flatten(1))


class SolutionFlow(OnStages):
    """Flow of the solution procedure: Σ_i mean over B·C·C of (G_s − G_t)², G_i = f_{i+1} f_iᵀ / (H·W).

    Taps maps (B, D, H, W), at least two of each network, all pairs of stages by default; G is taken between
    neighbours, the larger map of the two averaged down to the smaller. Widths of student and teacher must agree.

    Source: Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation", 2017.
    Trap: the paper pools by maximum and sums over C·C; the weights are made for this form, with averages. The
    reference code compares the stem, too: name it in `layers`. It trains the body in a first stage of its own.
    """

    class Config(StagesConfig):
        """Options of ``fsp``."""

        kind: Literal["fsp"]

    config: Config
    same_width = True
    pools = False
    published = {
        "fsp": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "fsp", "weight": 50}],
            stages=[{"share": FIRST, "losses": ["fsp"], "train": ["body"]}, {"losses": ["ce"]}],
            source="Yim, Joo, Bae, Kim, A Gift from Knowledge Distillation, 2017; a first stage of 30 epochs "
            f"before 240 and weights for CIFAR-100: {CRD}",
        )
    }

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """All pairs; raises ``Mismatch`` where there is but one, or widths differ."""
        taps = super().taps(student, teacher)
        if len(self.pairs) < 2:
            raise Mismatch(
                f"'fsp' compares the flow between layers, and {student.owner} and its teacher have one pair",
                "name two or more pairs as 'layers'",
                "layers",
            )
        return taps

    def total(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The sum over neighbours, ≥ 0."""
        ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
        flows = zip(self._flows(ours), self._flows(theirs), strict=True)
        return torch.stack([F.mse_loss(s, t) for s, t in flows]).sum()

    def _flows(self, maps: list[Tensor]) -> list[Tensor]:
        """(B, C_{i+1}, C_i) between each map and the next."""
        flows = []
        for low, high in pairwise(maps):
            low, high = (f.flatten(2) for f in to_smaller(low, high))
            flows.append(high @ low.mT / low.shape[2])
        return flows


class NeuronSelectivity(StagesLoss):
    """Neuron selectivity: Σ_layers squared maximum mean discrepancy of the channels, with the kernel (x·y)².

    Each channel of a map (B, D, H, W) is flattened to a unit vector over H·W; the discrepancy is mean k(t, t) +
    mean k(s, s) − 2 mean k(s, t) over samples and pairs of channels. All pairs of stages by default, of any
    widths; the larger map is pooled to the smaller.

    Source: Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017.
    Trap: the authors' code leaves the constant k(t, t) out: another value, the same gradient. A dead channel
    stays zero; maps of one pixel have no selectivity and are left out. Memory is B·C² floats a layer, C the wider one.
    """

    class Config(StagesConfig):
        """Options of ``nst``."""

        kind: Literal["nst"]

    config: Config
    compares_places = True
    published = {
        "nst": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "nst", "weight": 50}],
            source="Huang, Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017; "
            f"weights for CIFAR-100: {CRD}",
        )
    }

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Of one pair, ≥ 0."""
        ours, theirs = unit(student.flatten(2)), unit(teacher.flatten(2))
        return self._kernel(theirs, theirs) + self._kernel(ours, ours) - 2 * self._kernel(ours, theirs)

    def _kernel(self, x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.mT).square().mean()


class VariationalInformation(OnStages):
    """Variational information distillation: Σ_layers mean of ½((μ(f_s) − f_t)²/σ² + log σ²).

    Taps maps (B, D, H, W), all pairs of stages by default; the larger is pooled to the smaller. μ is three 1×1
    convolutions with ReLUs between them, σ²_c = softplus(a_c) + 1e-5 one variance a channel of the teacher,
    starting at `variance`; both are trained.

    Source: Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for Knowledge Transfer", 2019.
    Trap: the loss may be negative. A well-known port never trains the variance.
    """

    class Config(StagesConfig):
        """Options of ``vid``."""

        kind: Literal["vid"]
        variance: float = Field(default=5.0, gt=1e-4)
        """the variances at the start"""
        middle: int | None = Field(default=None, ge=1)
        """channels inside μ; the teacher's where nothing is said"""

    config: Config
    published = {
        "vid": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "vid", "weight": 1}],
            source="Ahn, Hu, Damianou, Lawrence, Dai, Variational Information Distillation for Knowledge Transfer, "
            f"2019; weights for CIFAR-100: {CRD}",
        )
    }

    def adapter(self, student: Shape, teacher: Shape) -> nn.Module:
        """The regressor and the variances of one pair."""
        return _Gaussian(student[0], self.config.middle or teacher[0], teacher[0], self.config.variance)

    def total(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The sum over pairs; it may be negative."""
        terms = []
        for (mean, teacher), adapter in zip(pairs, self.adapters, strict=True):
            assert isinstance(adapter, _Gaussian)
            variance = adapter.variance()
            terms.append((((mean - teacher).square() / variance + variance.log()) / 2).mean())
        return torch.stack(terms).sum()


class _Gaussian(nn.Module):
    """A Gaussian of the teacher's map given the student's: its mean, and a variance for each channel."""

    LEAST = 1e-5

    def __init__(self, student: int, middle: int, teacher: int, variance: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((student, middle), (middle, middle), (middle, teacher)):
            layers += [nn.Conv2d(inputs, outputs, 1, bias=False), nn.ReLU()]
        self.regressor = nn.Sequential(*layers[:-1])
        self.log_scale = nn.Parameter(torch.full((teacher,), _softplus_inverse(variance - self.LEAST)))

    def forward(self, x: Tensor) -> Tensor:
        """The mean (B, C_t, H, W)."""
        mean: Tensor = self.regressor(x)
        return mean

    def variance(self) -> Tensor:
        """(C_t, 1, 1)."""
        return (F.softplus(self.log_scale) + self.LEAST).view(-1, 1, 1)


def _softplus_inverse(x: float) -> float:
    """y with log(1 + exp y) = x, of any x > 0."""
    return x + math.log(-math.expm1(-x))


class ChannelWise(LayerLoss):
    """Channel-wise distillation: T² · mean over B·C of KL(softmax_hw(f_t/T) ‖ softmax_hw(f_s/T)).

    Taps one map (B, D, H, W) of each, the last stage by default, or the logits of a dense prediction; the larger
    is pooled to the smaller. Where the widths differ, the student's goes through ReLU(BN(1×1 convolution)).

    Source: Shu, Liu, Gao, Yan, Shen, "Channel-wise Knowledge Distillation for Dense Prediction", 2021.
    Trap: made for segmentation; no published weight is for a classification. A map of one pixel has no
    distribution over positions and is refused.
    """

    class Config(LayerConfig):
        """Options of ``cwd``."""

        kind: Literal["cwd"]
        temperature: Temperature = 1.0
        """softens the distributions over positions"""

    config: Config
    form = "maps"
    default = "last stage"
    pools = True
    compares_places = True
    published = {
        "cwd": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "cwd", "weight": 3, "temperature": 4}],
            source="Shu, Liu, Gao, Yan, Shen, Channel-wise Knowledge Distillation for Dense Prediction, 2021, for "
            "the logits of a segmentation",
        )
    }

    def build(self, context: Context) -> None:
        """Make the adapter where the widths differ."""
        ours, theirs = self.shapes(context)
        if ours[0] != theirs[0]:
            self.adapter = nn.Sequential(pointwise(ours, theirs), nn.ReLU())

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The divergence, ≥ 0."""
        t = self.config.temperature
        ours, theirs = (f.flatten(2) / t for f in (student, teacher))
        p, log_q = F.softmax(theirs, dim=-1), F.log_softmax(ours, dim=-1)
        return t**2 * F.kl_div(log_q, p, reduction="sum") / ours.shape[:2].numel()


class PearsonCorrelation(LayerLoss):
    """Pearson correlation of maps: ½ · mean of (n(f_s) − n(f_t))², n standardising each channel over B·H·W.

    Taps one map (B, D, H, W) of each, the last stage by default; the larger is pooled to the smaller, and where
    the widths differ the student's goes through a 1×1 convolution. Standard deviations are unbiased, plus 1e-6.

    Source: Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation
    Coefficient", 2022.
    Trap: made for detection, with equal widths; no published weight is for a classification. The authors resize
    the student's map where the sizes differ.
    """

    class Config(LayerConfig):
        """Options of ``pkd``."""

        kind: Literal["pkd"]

    config: Config
    form = "maps"
    default = "last stage"
    pools = True
    published = {
        "pkd": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "pkd", "weight": 6}],
            source="Cao et al., PKD: General Distillation Framework for Object Detectors via Pearson Correlation "
            "Coefficient, 2022, for two-stage detectors",
        )
    }

    def build(self, context: Context) -> None:
        """Make the adapter where the widths differ."""
        ours, theirs = self.shapes(context)
        if ours[0] != theirs[0]:
            self.adapter = pointwise(ours, theirs, norm=False)

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Between 0 and 2."""
        return F.mse_loss(self._standardised(student), self._standardised(teacher)) / 2

    def _standardised(self, features: Tensor) -> Tensor:
        """Each channel's values (C, B·H·W) with mean 0 and standard deviation 1."""
        values = features.transpose(0, 1).flatten(1)
        values = values - values.mean(dim=1, keepdim=True)
        deviation = torch.linalg.vector_norm(values, dim=1, keepdim=True) / max(values.shape[1] - 1, 1) ** 0.5
        return values / (deviation + 1e-6)


class InterChannel(LayerLoss):
    """Inter-channel correlation: Σ (N(f_s f_sᵀ) − N(f_t f_tᵀ))² / (C·B), over the channels of each sample.

    Taps one map (B, D, H, W) of each, the last stage by default, of any sizes; the student's first goes through
    BN(1×1 convolution) to the teacher's width C. N divides each row of the C×C products by its L2 norm.

    Source: Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation",
    2021.
    Trap: the authors' ImageNet code divides by B once more, and one of their scripts has the weight 4.
    Memory is B·C² floats for each network.
    """

    class Config(LayerConfig):
        """Options of ``ickd``."""

        kind: Literal["ickd"]

    config: Config
    form = "maps"
    default = "last stage"
    published = {
        "ickd": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "ickd", "weight": 2.5}],
            source="Liu et al., Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation, "
            "2021, for CIFAR-100",
        )
    }

    def build(self, context: Context) -> None:
        """Make the adapter."""
        self.adapter = pointwise(*self.shapes(context))

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The squared distance, ≥ 0."""
        ours, theirs = (unit(f.flatten(2) @ f.flatten(2).mT) for f in (student, teacher))
        return (ours - theirs).square().sum() / teacher.shape[:2].numel()


class MaskedGeneration(OnLayer):
    """Masked generative distillation: Σ (g(m · a(f_s)) − f_t)² / B.

    Taps one map (B, D, H, W) of each, the last stage by default; the larger is pooled to the smaller. a is a 1×1
    convolution where the widths differ, m a random mask of channels or positions, g two 3×3 convolutions with a
    ReLU between them.

    Source: Yang et al., "Masked Generative Distillation", 2022.
    Trap: a sum over channels and positions, so the weight is tiny. What is kept is not scaled up.
    """

    class Config(LayerConfig):
        """Options of ``mgd``."""

        kind: Literal["mgd"]
        masked: float = Field(default=0.15, ge=0, lt=1)
        """the probability with which a channel or place is left out"""
        mask_of: Literal["channels", "positions"] = "channels"
        """what is left out: channels, for classification, or positions, for detection and segmentation"""

    config: Config
    form = "maps"
    default = "last stage"
    published = {
        "mgd": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "mgd", "weight": 1.2e-3}],
            source="Yang et al., Masked Generative Distillation, 2022; the weight for CIFAR-100 is the authors', in "
            "the code of Yang et al., 2023",
        )
    }

    def build(self, context: Context) -> None:
        """Make the generator, and the adapter where the widths differ."""
        ours, theirs = self.shapes(context)
        if ours[0] != (wide := theirs[0]):
            self.adapter = pointwise(ours, theirs, norm=False, bias=True)
        self.generator = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, wide, 3, padding=1)
        )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The squared error, ≥ 0."""
        ours, theirs = to_smaller(*self.layers(student, teacher))
        aligned = full(self.adapter(ours))
        generated = full(self.generator(aligned * self.kept(aligned)))
        return (generated - theirs).square().sum() / len(theirs)

    def kept(self, aligned: Tensor) -> Tensor:
        """A random mask, 1 to keep and 0 to leave out, that broadcasts over the aligned map (B, C, H, W)."""
        size, channels, height, width = aligned.shape
        shape = (size, channels, 1, 1) if self.config.mask_of == "channels" else (size, 1, height, width)
        return (torch.rand(shape, device=aligned.device) >= self.config.masked).to(aligned.dtype)
