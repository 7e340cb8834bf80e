"""Losses that compare every stage of the student with several of the teacher's."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdrun.contracts import Batch, Context, Loss, LossConfig, Outputs, Published, Taps
from kdrun.errors import Mismatch
from kdrun.losses.adapters import Shape, bottleneck, pool, to_smaller
from kdrun.losses.base import LayerPairs, require_maps
from kdrun.losses.matching import Pair, as_maps, chosen_layer, deep_pairs, named_pairs, stages_of, with_layers
from kdrun.losses.numerics import exact, fixed, full, unit
from kdrun.losses.recipes import WARM_UP
from kdrun.taps import LayerTable


class KnowledgeReview(Loss):
    """Knowledge review: Σ_levels hcl(fused student map, teacher map), fused from the deepest level to the shallowest.

    Levels are the stages, counted off from the deep end, and the embedding as a map of one pixel; the teacher's
    stages are taken before their last ReLU where it names them. A fusion brings the student's map to as many
    channels as its deepest level has, at most 512 (BN(1×1 convolution)), mixes it by learned attention with the
    fused map of the level below it, and maps it to the teacher's width (BN(3×3 convolution)). hcl is the mean
    squared error at full size and, with weights 1/2, 1/4, 1/8 in order of use, of the maps averaged to 4, 2 and
    1 pixels a side, divided by the weights' sum.

    Source: Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", 2021.
    Trap: the smaller sizes' weights go by the order in which they are used, not by the size.
    """

    class Config(LossConfig):
        """Options of ``reviewkd``."""

        kind: Literal["reviewkd"]
        layers: LayerPairs | None = None
        """levels [student's layer, teacher's layer], shallow to deep; stages and embedding where nothing is said"""
        fusion: bool = True
        """false: compare the maps themselves, of equal widths, by hcl alone"""

    config: Config
    on_logits = False
    published = {
        "reviewkd": Published(
            losses=[
                {"kind": "ce", "weight": 1},
                {"kind": "reviewkd", "weight": 5, "schedule": WARM_UP},
            ],
            source="Chen, Liu, Zhao, Jia, Distilling Knowledge via Knowledge Review, 2021, for resnet32x4 to "
            "resnet8x4 on CIFAR-100, warm-up of 20 of 240 epochs",
        )
    }
    pairs: list[Pair]
    sizes: list[tuple[int, int]]

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """All levels, shallow to deep; raises ``Mismatch`` where one gives neither maps nor vectors."""
        teacher = with_layers(teacher, "reviewkd")
        if self.config.layers is None:
            before = bool(teacher.preactivations)
            deepest = (chosen_layer(t, None, t.pooled, "layers") for t in (student, teacher))
            self.pairs = [*deep_pairs(student, teacher, before), (next(deepest), next(deepest))]
        else:
            self.pairs = named_pairs(self.config.layers, student, teacher, (False, True))
        self.pairs = as_maps(self.pairs, student, teacher)
        for s, t in self.pairs:
            both = ((student, s), (teacher, t))
            if any(len(table.shapes[name]) not in (1, 3) for table, name in both):
                require_maps("reviewkd", "layers", *both)
            ours, theirs = _as_map(student.shapes[s]), _as_map(teacher.shapes[t])
            if not self.config.fusion and ours != theirs:
                raise Mismatch(
                    f"without fusion the shapes must agree, and layer '{s}' of {student.owner} gives {ours}, layer "
                    f"'{t}' of {teacher.owner} {theirs}",
                    "write fusion: true, or name other layers",
                    "fusion",
                )
        ours_all, theirs_all = zip(*self.pairs, strict=True)
        return Taps(ours_all, theirs_all)

    def build(self, context: Context) -> None:
        """Make a fusion for each level, the deepest first."""
        assert context.teacher is not None
        ours = [_as_map(tuple(context.student.features[s].shape[1:])) for s, _ in self.pairs]
        theirs = [_as_map(tuple(context.teacher.features[t].shape[1:])) for _, t in self.pairs]
        middle = min(512, ours[-1][0])
        self.sizes = [(height, width) for _, height, width in reversed(theirs)]
        self.fusions = nn.ModuleList(
            _Fusion(s[0], middle, t[0], attends=bool(i))
            for i, (s, t) in enumerate(zip(reversed(ours), reversed(theirs), strict=True))
            if self.config.fusion
        )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The sum over levels, ≥ 0. BatchNorm refuses a batch of one."""
        assert teacher is not None
        maps = [_pixel(full(student.features[s])) for s, _ in reversed(self.pairs)]
        wanted = [_pixel(fixed(teacher.features[t])) for _, t in reversed(self.pairs)]
        if self.config.fusion:
            maps = self._fused(maps)
        with exact(wanted[0]):
            return torch.stack([_hierarchical(full(s), t) for s, t in zip(maps, wanted, strict=True)]).sum()

    def _fused(self, maps: list[Tensor]) -> list[Tensor]:
        fused: Tensor | None = None
        out = []
        for x, fusion, size in zip(maps, self.fusions, self.sizes, strict=True):
            result, fused = fusion(x, fused, size)
            out.append(result)
        return out


class _Fusion(nn.Module):
    """One level: the student's map mixed with the fused map of the deeper level."""

    def __init__(self, inputs: int, middle: int, outputs: int, attends: bool) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.conv2 = nn.Sequential(
            nn.Conv2d(middle, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.attention = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if attends else None

    def forward(self, x: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The level's map (B, outputs, *size) and what is handed on, (B, middle, *size)."""
        x = self.conv1(x)
        if self.attention is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            shares = self.attention(torch.cat([x, deeper], dim=1))
            x = x * shares[:, :1] + deeper * shares[:, 1:]
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="nearest")
        return self.conv2(x), x


def _as_map(shape: Shape) -> Shape:
    """(D,) as (D, 1, 1)."""
    return (*shape, 1, 1) if len(shape) == 1 else shape


def _pixel(x: Tensor) -> Tensor:
    """(B, D) as (B, D, 1, 1)."""
    return x[:, :, None, None] if x.ndim == 2 else x


def _hierarchical(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared error at several sizes, of two maps of one shape."""
    total, weights, weight = F.mse_loss(student, teacher), 1.0, 1.0
    for size in (4, 2, 1):
        if size < min(student.shape[2:]):
            weight /= 2
            weights += weight
            total = total + weight * F.mse_loss(pool(student, size, size), pool(teacher, size, size))
    return total / weights


class SemanticCalibration(Loss):
    """Semantic calibration: Σ_{b,i,j} A[b,i,j] · mean (r_ij(f_i)[b] − f_j[b])² / (B·n), over all pairs of layers.

    Taps maps (B, D, H, W), n stages of the student i and all of the teacher j; the larger of a pair is pooled to the
    smaller, r is a bottleneck of three convolutions. A is a softmax over j of the products of queries and keys: unit
    vectors that two-layer networks make from the rows of the student's and of the teacher's B×B Gram matrices.

    Source: Chen et al., "Cross-Layer Distillation with Semantic Calibration", 2021.
    Trap: the width of those networks is the batch's size, so they know positions in the batch, and its order matters;
    the Gram matrices are of raw features, and large.
    """

    class Config(LossConfig):
        """Options of ``semckd``."""

        kind: Literal["semckd"]
        layers: LayerPairs | None = None
        """pairs [student's layer, teacher's layer] whose combinations are compared; all stages where nothing is said"""
        factor: int = Field(default=4, ge=1)
        """how much narrower than the batch queries and keys are"""

    config: Config
    on_logits = False
    whole_batch = True
    published = {
        "semckd": Published(
            losses=[
                {"kind": "ce", "weight": 1},
                {"kind": "kd", "weight": 1, "temperature": 4},
                {"kind": "semckd", "weight": 400},
            ],
            source="Chen et al., Cross-Layer Distillation with Semantic Calibration, 2021, for CIFAR-100",
        )
    }
    ours: tuple[str, ...]
    theirs: tuple[str, ...]

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """All stages; raises ``Mismatch`` where one gives no maps."""
        teacher = with_layers(teacher, "semckd")
        if self.config.layers is None:
            self.ours, self.theirs = stages_of(student), stages_of(teacher)
        else:
            pairs = named_pairs(self.config.layers, student, teacher)
            self.ours, self.theirs = (tuple(dict.fromkeys(side)) for side in zip(*pairs, strict=True))
        self.ours = tuple(student.as_map(layer) for layer in self.ours)
        self.theirs = tuple(teacher.as_map(layer) for layer in self.theirs)
        for table, layers in ((student, self.ours), (teacher, self.theirs)):
            for layer in layers:
                require_maps("semckd", "layers", (table, layer))
        return Taps(self.ours, self.theirs, crosswise=True)

    def build(self, context: Context) -> None:
        """Make queries, keys and regressors."""
        assert context.teacher is not None
        ours = [context.student.features[name].shape[1] for name in self.ours]
        theirs = [context.teacher.features[name].shape[1] for name in self.theirs]
        size, width = context.batch_size, max(1, context.batch_size // self.config.factor)
        self.queries = nn.ModuleList(_Projection(size, width) for _ in ours)
        self.keys = nn.ModuleList(_Projection(size, width) for _ in theirs)
        self.regressors = nn.ModuleList(
            nn.ModuleList(bottleneck(s, 2 * t, t, last_norm=False) for t in theirs) for s in ours
        )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The weighted sum, ≥ 0."""
        assert teacher is not None
        ours = [full(student.features[name]) for name in self.ours]
        theirs = [fixed(teacher.features[name]) for name in self.theirs]
        rows = []
        for f, regressors in zip(ours, self.regressors, strict=True):
            assert isinstance(regressors, nn.ModuleList)
            rows.append(
                torch.stack([_error(f, r, t) for r, t in zip(regressors, theirs, strict=True)], dim=1)
            )
        with exact(ours[0]):
            attention = self.attention(ours, theirs)
            return (attention * torch.stack(rows, dim=1)).sum() / attention.shape[:2].numel()

    def attention(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        """The weights (B, n of the student, n of the teacher), which sum to 1 over the teacher's layers."""
        queries = torch.stack([query(f) for query, f in zip(self.queries, ours, strict=True)], dim=1)
        keys = torch.stack([key(f) for key, f in zip(self.keys, theirs, strict=True)], dim=1)
        return F.softmax(queries @ keys.mT, dim=-1)


class _Projection(nn.Module):
    """Unit vectors (B, width) from the rows of a batch's Gram matrix."""

    def __init__(self, batch_size: int, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(batch_size, 2 * width)
        self.linear2 = nn.Linear(2 * width, width)

    def forward(self, features: Tensor) -> Tensor:
        """From features (B, …)."""
        flat = features.flatten(1)
        return unit(self.linear2(F.relu(self.linear1(flat @ flat.T))))


def _error(student: Tensor, regressor: nn.Module, teacher: Tensor) -> Tensor:
    """The mean squared error of each sample, (B,)."""
    student, teacher = to_smaller(student, teacher)
    return (full(regressor(student)) - teacher).square().flatten(1).mean(dim=1)
