"""Losses with a first stage of their own, or on maps before the last ReLU: factors, boundaries, margins."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdrun.contracts import Batch, Context, Outputs, Published, Taps
from kdrun.errors import Mismatch
from kdrun.losses.adapters import Shape, pointwise, to_smaller
from kdrun.losses.base import LayerConfig, LayerLoss, OnStages, StagesConfig
from kdrun.losses.numerics import fixed, full, unit
from kdrun.losses.recipes import CRD, FIRST
from kdrun.taps import LayerTable

SLOPE = 0.1


def _activated(layers: list[nn.Module]) -> nn.Sequential:
    """The layers, each followed by a leaky ReLU."""
    return nn.Sequential(*(nn.Sequential(layer, nn.LeakyReLU(SLOPE)) for layer in layers))


def _encoder(inputs: int, planes: int) -> nn.Sequential:
    """Three 3×3 convolutions to ``planes`` channels, the first of which keeps the width."""
    widths = ((inputs, inputs), (inputs, planes), (planes, planes))
    return _activated([nn.Conv2d(*pair, 3, padding=1) for pair in widths])


class Paraphraser(nn.Module):
    """An autoencoder of maps (B, C, H, W): an encoder to factors (B, k, H, W) and its mirror image."""

    def __init__(self, inputs: int, planes: int) -> None:
        super().__init__()
        self.encoder = _encoder(inputs, planes)
        widths = ((planes, planes), (planes, inputs), (inputs, inputs))
        self.decoder = _activated([nn.ConvTranspose2d(*pair, 3, padding=1) for pair in widths])

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction."""
        reconstruction: Tensor = self.decoder(self.encoder(x))
        return reconstruction


class FactorTransfer(LayerLoss):
    """Factor transfer: mean over B·k·H·W of |unit(flatten F_s) − unit(flatten F_t)|.

    Taps one map (B, D, H, W) of each, the last stage by default; the larger factor is pooled to the smaller. F_t
    is the encoder of a paraphraser, an autoencoder of the teacher's map to k = `rate`·C_t channels; F_s is a
    translator of the student's map, of the encoder's form. In a stage that trains the adapters only the paraphraser
    learns, by mean |reconstruction − f_t|; later it stays as it is.

    Source: Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", 2018.
    Trap: a well-known port reduces the factors to attention maps mean_c F² first (`form: attention`), which is
    another loss. Without the first stage the paraphraser is a random projection.
    """

    class Config(LayerConfig):
        """Options of ``ft``."""

        kind: Literal["ft"]
        rate: float = Field(default=0.5, gt=0, le=100)
        """channels of a factor, as a share of the teacher's"""
        planes: int | None = Field(default=None, ge=1)
        """channels of a factor; by `rate` where nothing is said"""
        form: Literal["factors", "attention"] = "factors"
        """factors: the paper's; attention: their mean squares over channels"""
        adapter: Literal["paraphraser", "none"] = "paraphraser"
        """none: the two maps themselves are the factors"""

    config: Config
    form = "maps"
    default = "last stage"
    published = {
        "ft": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "ft", "weight": 500}],
            stages=[{"share": FIRST, "losses": ["ft"], "train": ["adapters"]}],
            source="Kim, Park, Kwak, Paraphrasing Complex Network: Network Compression via Factor Transfer, 2018, "
            f"for CIFAR-10; a first stage of 30 epochs before 240: {CRD}",
        )
    }

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """One map of each; raises ``Mismatch`` where without adapters the widths differ."""
        taps = super().taps(student, teacher)
        assert teacher is not None
        widths = student.shapes[self.pair[0]][0], teacher.shapes[self.pair[1]][0]
        if self.config.adapter == "none" and self.config.form == "factors" and widths[0] != widths[1]:
            raise Mismatch(
                f"without a paraphraser the widths must agree, and layer '{self.pair[0]}' of {student.owner} has "
                f"{widths[0]} channels, layer '{self.pair[1]}' of {teacher.owner} {widths[1]}",
                "write adapter: paraphraser, or form: attention",
                "adapter",
            )
        return taps

    def build(self, context: Context) -> None:
        """Make paraphraser and translator."""
        (ours, *_), (theirs, *_) = self.shapes(context)
        planes = self.config.planes or max(1, int(theirs * self.config.rate))
        self.paraphraser: Paraphraser | None = None
        if self.config.adapter == "paraphraser":
            self.paraphraser, self.adapter = Paraphraser(theirs, planes), _encoder(ours, planes)

    def pretrain(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The paraphraser's mean absolute error, ≥ 0."""
        _, theirs = self.layers(student, teacher)
        return (
            theirs.new_zeros(())
            if self.paraphraser is None
            else F.l1_loss(full(self.paraphraser(theirs)), theirs)
        )

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The mean absolute error, ≥ 0."""
        if self.paraphraser is not None:
            with torch.no_grad():
                teacher = full(self.paraphraser.encoder(teacher))
        ours, theirs = to_smaller(student, teacher)
        return F.l1_loss(self._direction(ours), self._direction(theirs))

    def _direction(self, factor: Tensor) -> Tensor:
        if self.config.form == "attention":
            factor = factor.square().mean(dim=1)
        return unit(factor.flatten(1))


class ActivationBoundaries(OnStages):
    """Activation boundaries: 3/1000 · Σ_i 2^(i−n+1) · Σ ([t > 0]·max(m − s, 0)² + [t ≤ 0]·max(s + m, 0)²) / B.

    s and t are maps (B, D, H, W) before the last ReLU of each stage i = 0 … n − 1, of one size, all pairs of stages
    by default; where the widths differ the student's goes through BN(1×1 convolution). m is the margin.

    Source: Heo, Lee, Yun, Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden
    Neurons", 2019.
    Trap: codes scale it very differently, by factors from 1 to 900. It trains the body in a first stage of its own,
    before the labels are looked at; at student = teacher it is 0 only where |t| is at least m.
    """

    class Config(StagesConfig):
        """Options of ``ab``."""

        kind: Literal["ab"]
        margin: float = Field(default=1.0, gt=0)
        """how far on its side of 0 the student's value should be"""

    config: Config
    before_relu = True
    same_size = True
    published = {
        "ab": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "ab", "weight": 1}],
            stages=[{"share": FIRST, "losses": ["ab"], "train": ["adapters", "body"]}, {"losses": ["ce"]}],
            source="Heo, Lee, Yun, Choi, Knowledge Transfer via Distillation of Activation Boundaries Formed by "
            f"Hidden Neurons, 2019; a first stage of 30 epochs before 240 and weights for CIFAR-100: {CRD}",
        )
    }

    def adapter(self, student: Shape, teacher: Shape) -> nn.Module:
        """A connector where the widths differ."""
        return nn.Identity() if student[0] == teacher[0] else pointwise(student, teacher)

    def total(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The weighted sum over stages, ≥ 0."""
        m, last = self.config.margin, len(pairs) - 1
        terms = [
            torch.where(t > 0, F.relu(m - s), F.relu(s + m)).square().sum() * 2.0 ** (i - last)
            for i, (s, t) in enumerate(pairs)
        ]
        return 3e-3 * torch.stack(terms).sum() / len(pairs[0][0])


class Overhaul(OnStages):
    """Overhaul of feature distillation: Σ_i 2^−(n−1−i) · Σ (s − t')² · [s > t' or t' > 0] / (1000·B).

    s and t are maps (B, D, H, W) before the last ReLU of each stage i = 0 … n − 1, of one size, all pairs of stages
    by default; s = BN(1×1 convolution) of the student's. t' = max(t, margin), with a margin for each channel: the
    mean of the negative part of N(β, γ²), from the BatchNorm before the teacher's ReLU.

    Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", 2019.
    Trap: γ may be negative and counts by its size; where less than 0.1 % is negative the margin is −3|γ|. The
    authors leave the teacher in training mode, which is another teacher.
    """

    class Config(StagesConfig):
        """Options of ``ofd``."""

        kind: Literal["ofd"]

    config: Config
    before_relu = True
    same_size = True
    published = {
        "ofd": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "ofd", "weight": 1}],
            source="Heo et al., A Comprehensive Overhaul of Feature Distillation, 2019",
        )
    }
    norms: list[str]

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """All pairs; raises ``Mismatch`` where the teacher's layer has no BatchNorm before it."""
        taps = super().taps(student, teacher)
        assert teacher is not None
        before = dict(zip(teacher.preactivations, teacher.norms, strict=bool(teacher.norms)))
        for layer in taps.teacher:
            if layer not in before:
                raise Mismatch(
                    f"'ofd' takes its margins from the BatchNorm before a stage's last ReLU, and {teacher.owner} "
                    f"names none for layer '{layer}'",
                    f"layers that have one: {', '.join(before) or 'none; use at, vid or hint'}",
                    "layers",
                )
        self.norms = [before[layer] for layer in taps.teacher]
        return taps

    def build(self, context: Context) -> None:
        """Make the connectors and learn the margins."""
        super().build(context)
        for number, norm in enumerate(self.norms):
            scale, shift = (context.teacher_state[f"{norm}.{part}"] for part in ("weight", "bias"))
            self.register_buffer(f"margin{number}", _negative_mean(shift, scale.abs()).view(-1, 1, 1))

    def adapter(self, student: Shape, teacher: Shape) -> nn.Module:
        """A connector, always."""
        return pointwise(student, teacher)

    def total(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The weighted sum over stages, ≥ 0."""
        terms = []
        for i, (s, t) in enumerate(pairs):
            least = torch.maximum(t, self.get_buffer(f"margin{i}"))
            counts = (s > least) | (least > 0)
            terms.append(((s - least).square() * counts).sum() * 2.0 ** (i - len(pairs) + 1))
        return torch.stack(terms).sum() / len(pairs[0][0]) / 1000


def _negative_mean(mean: Tensor, deviation: Tensor) -> Tensor:
    """E[x | x < 0] of normal distributions, −3 deviations where x < 0 is rarer than 0.001."""
    mean, deviation = fixed(mean), fixed(deviation).clamp_min(1e-12)
    ratio = mean / deviation
    below = torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / (2 * torch.pi) ** 0.5
    return torch.where(below > 1e-3, mean - deviation * density / below.clamp_min(1e-3), -3 * deviation)
