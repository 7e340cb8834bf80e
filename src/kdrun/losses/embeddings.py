"""Losses near the classifier: on embeddings, on class maps, and through the teacher's own classifier."""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdrun.contracts import HIDDEN, Batch, Context, Loss, LossConfig, Outputs, Published, Taps
from kdrun.errors import Mismatch
from kdrun.losses.adapters import bottleneck, pointwise, pool, to_smaller
from kdrun.losses.base import LayerConfig, LayerLoss, OnLayer, has_maps, main_classes
from kdrun.losses.matching import last_stage, with_layers
from kdrun.losses.numerics import exact, fixed, full, unit
from kdrun.losses.recipes import WARM_UP
from kdrun.taps import CLASS_MAPS, LayerTable


def teacher_classifier(context: Context, kind: str, layer: str) -> nn.Linear:
    """A frozen copy of the teacher's classifier, which reads a layer, or the mean over positions of its maps.

    Raises ``Mismatch`` where it is no linear layer, or reads something else.
    """
    assert context.teacher is not None
    read = _averaged(fixed(context.teacher.features[layer]))
    weight = context.teacher_state.get(f"{context.teacher_head}.weight")
    if weight is None or weight.ndim != 2 or not weight.is_floating_point():
        raise Mismatch(
            f"'{kind}' needs a teacher whose classifier is a linear layer", "use another loss", "teacher"
        )
    bias = context.teacher_state.get(f"{context.teacher_head}.bias")
    linear = nn.Linear(weight.shape[1], len(weight), bias=bias is not None).to(weight)
    linear.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    linear.requires_grad_(False)
    size = float(context.teacher.logits.abs().max())
    if read.shape[1] != weight.shape[1] or not torch.allclose(
        linear(read.to(weight.dtype)), context.teacher.logits.to(weight.dtype), rtol=1e-3, atol=1e-3 * size
    ):
        raise Mismatch(
            f"'{kind}' puts the teacher's layer through the teacher's classifier, which does not read layer '{layer}' "
            "or its mean over positions",
            "name the layer that it reads as 'teacher_layer'",
            "teacher_layer",
        )
    return linear


def _averaged(x: Tensor) -> Tensor:
    """Maps (B, D, H, W) as their means (B, D); vectors as they are."""
    return x.mean(dim=(2, 3)) if x.ndim == 4 else x


class SoftmaxRegression(LayerLoss):
    """Softmax regression: mean (x − y)² + `classifier_weight` · mean (W x − W y)², W the teacher's classifier.

    x is the mean over positions of ReLU(BN(1×1 convolution)) of the student's map (B, D, H, W), y that of the
    teacher's. Taps the last stages by default, or the embeddings, which are vectors, where the classifier does
    not read the mean of the last stage.

    Source: Yang, Martinez, Bulat, Tzimiropoulos, "Knowledge Distillation via Softmax Regression Representation
    Learning", 2021.
    Trap: the mean is taken after the connector; before it the loss is another one. W is frozen.
    """

    class Config(LayerConfig):
        """Options of ``srrl``."""

        kind: Literal["srrl"]
        classifier_weight: float = Field(default=1.0, ge=0)
        """factor of the part behind the teacher's classifier"""

    config: Config
    form = "maps or vectors"
    reads_maps = False
    published = {
        "srrl": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "srrl", "weight": 1}],
            source="Yang, Martinez, Bulat, Tzimiropoulos, Knowledge Distillation via Softmax Regression "
            "Representation Learning, 2021",
        )
    }

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """One layer of each; of the teacher the one that its classifier reads."""
        self.reads_maps = teacher is not None and CLASS_MAPS in teacher.shapes
        return super().taps(student, teacher)

    def default_layer(self, table: LayerTable) -> str | None:
        """The last stage where the teacher's classifier reads it, else the embedding."""
        return last_stage(table) if self.reads_maps and has_maps(table) else table.pooled

    def build(self, context: Context) -> None:
        """Make the connector, and copy the teacher's classifier."""
        ours, theirs = self.shapes(context)
        self.adapter = nn.Sequential(*pointwise(ours, theirs), nn.ReLU())
        self.classifier = teacher_classifier(context, "srrl", self.pair[1])

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The sum of both parts, ≥ 0."""
        ours, theirs = _averaged(student), _averaged(teacher)
        behind = F.mse_loss(self.classifier(ours), self.classifier(theirs))
        return F.mse_loss(ours, theirs) + self.config.classifier_weight * behind


class SimKD(OnLayer):
    """SimKD: mean (p(f_s) − f_t)², and the teacher's classifier goes with the student.

    Taps one map (B, D, H, W) of each, the last stage by default; the larger is pooled to the smaller. The projector
    p is three convolutions, 1×1, 3×3 and 1×1, each with BatchNorm and ReLU, with C_t/`factor` channels between. An
    exported student is its body, the projector and the teacher's classifier, on the projected map's mean over
    positions; all of them count as its parameters.

    Source: Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher Classifier", 2022.
    Trap: the student's own classifier is neither trained nor exported; terms on its logits train it in vain.
    """

    class Config(LayerConfig):
        """Options of ``simkd``."""

        kind: Literal["simkd"]
        factor: int = Field(default=2, ge=1)
        """how much narrower than the teacher's map the projector is inside"""

    config: Config
    default = "last stage"
    form = "maps"
    at_inference = ("projector", "pool", "classifier")
    published = {
        "simkd": Published(
            losses=[{"kind": "simkd", "weight": 1}],
            source="Chen, Mei, Zhang, Wang, Feng, Chen, Knowledge Distillation with the Reused Teacher Classifier, "
            "2022",
        )
    }
    size: tuple[int, int]

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """One map of each; raises ``Mismatch`` for class maps, which an exported body has no classifier to make of."""
        taps = super().taps(student, teacher)
        if CLASS_MAPS in taps.student:
            raise Mismatch(
                "'simkd' leaves the student's classifier out, and class maps need it",
                "name a stage",
                "student_layer",
            )
        return taps

    def build(self, context: Context) -> None:
        """Make the projector, and copy the teacher's classifier."""
        (ours, *a), (theirs, *b) = self.shapes(context)
        self.size = min(a[0], b[0]), min(a[1], b[1])
        self.projector = bottleneck(ours, max(1, theirs // self.config.factor), theirs, last_norm=True)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = teacher_classifier(context, "simkd", self.pair[1])

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The mean squared error, ≥ 0."""
        ours, theirs = to_smaller(*self.layers(student, teacher))
        return F.mse_loss(full(self.projector(ours)), theirs)

    def predict(self, student: Outputs) -> Tensor:
        """The teacher's classifier on the projected map's means."""
        projected = self.projector(pool(full(student.features[self.pair[0]]), *self.size))
        logits: Tensor = self.classifier(self.pool(projected))
        return logits


class ClassAttention(Loss):
    """Class attention transfer: mean of (a(M_s) − a(M_t))², M = class maps (B, C, H, W) averaged to R×R.

    The class maps are each model's classifier, without its bias, applied at every place of its last stage; they
    exist where the classifier reads that stage's mean over positions. a makes each class's map a unit vector if
    `normalized`, and leaves it as it is if not.

    Source: Guo, Yan, Li, Yang, "Class Attention Transfer Based Knowledge Distillation", 2023.
    Trap: the weight was tuned for each pair, from 0.7 to 600; pairs of one family were not normalised.
    """

    class Config(LossConfig):
        """Options of ``cat-kd``."""

        kind: Literal["cat-kd"]
        resolution: int = Field(default=2, ge=1)
        """R: pixels a side to which the class maps are averaged"""
        normalized: bool = True
        """compare the directions of the maps"""

        @model_validator(mode="after")
        def _more_than_a_sign(self) -> Self:
            if self.normalized and self.resolution == 1:
                raise ValueError(
                    "of one pixel the direction is a sign: write resolution: 2, or normalized: false"
                )
            return self

    config: Config
    on_logits = False
    published = {
        "cat-kd": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "cat-kd", "weight": 15, "normalized": False}],
            source="Guo, Yan, Li, Yang, Class Attention Transfer Based Knowledge Distillation, 2023, for resnet32x4 "
            "to resnet8x4 on CIFAR-100",
        )
    }

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """The class maps of both; raises ``Mismatch`` where a model has none."""
        for table in (student, with_layers(teacher, "cat-kd")):
            if CLASS_MAPS not in table.shapes:
                raise Mismatch(
                    f"'cat-kd' compares class maps, and {table.owner} has none: its classifier does not read the "
                    "mean over positions of its last stage",
                    "use a resnet, wrn or vgg, or another loss",
                )
        return Taps((CLASS_MAPS,), (CLASS_MAPS,))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The mean squared error, ≥ 0."""
        assert teacher is not None
        maps = full(student.features[CLASS_MAPS]), fixed(teacher.features[CLASS_MAPS])
        size = min(self.config.resolution, *(length for m in maps for length in m.shape[2:]))
        ours, theirs = (pool(m, size, size).flatten(2) for m in maps)
        return F.mse_loss(unit(ours), unit(theirs)) if self.config.normalized else F.mse_loss(ours, theirs)


class SimpleRecipe(LayerLoss):
    """A simple recipe: log Σ over B·D of |BN(W f_s) − BN(f_t)|⁴.

    Taps one layer of each, flattened to (B, ·), the embedding by default. W is a linear layer to the teacher's width
    D; BN standardises over the batch, without scale and shift, with 1e-4 added to the variance.

    Source: Miles, Mikolajczyk, "Understanding the Role of the Projector in Knowledge Distillation", 2024.
    Trap: a sum, so the value depends on B and D, and may be negative. A batch of one has no statistics and is
    refused.
    """

    class Config(LayerConfig):
        """Options of ``srd``."""

        kind: Literal["srd"]
        exponent: float = Field(default=4.0, gt=1)
        """the power of the differences"""

    config: Config
    published = {
        "srd": Published(
            losses=[
                {"kind": "ce", "weight": 1},
                {"kind": "kd", "weight": 1, "temperature": 1},
                {"kind": "srd", "weight": 2},
            ],
            source="Miles, Mikolajczyk, Understanding the Role of the Projector in Knowledge Distillation, 2024, for "
            "ImageNet",
        )
    }

    def build(self, context: Context) -> None:
        """Make the projector."""
        (ours,), (theirs,) = self.shapes(context)
        self.adapter = nn.Linear(ours, theirs)

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The logarithm; −69 where both are equal."""
        ours, theirs = (F.batch_norm(f, None, None, training=True, eps=1e-4) for f in (student, teacher))
        return (ours - theirs).abs().pow(self.config.exponent).sum().clamp_min(1e-30).log()


class NormAndDirection(LayerLoss):
    """Norm and direction (KD++): mean_b (1 − ⟨s, e_y⟩ / max(‖s‖, ‖t‖)), e_y the unit class centre of the teacher.

    Taps one layer of each, flattened to (B, ·), the embedding by default; where the widths differ the student's goes
    through a linear layer. Class centres are the teacher's means over the training set, not augmented; samples whose
    label the student does not see count for the class that the teacher takes them for.

    Source: Wang et al., "Improving Knowledge Distillation via Regularizing Feature Norm and Direction", 2023.
    Trap: the gradient goes through ‖s‖ where it is the larger norm. Not 0 at student = teacher: the direction that
    is wanted is the class's, not the sample's.
    """

    class Config(LayerConfig):
        """Options of ``nd``."""

        kind: Literal["nd"]

    config: Config
    published = {
        "nd": Published(
            losses=[
                {"kind": "ce", "weight": 1},
                {
                    "kind": "kd",
                    "weight": 3.5,
                    "temperature": 4,
                    "schedule": WARM_UP,
                },
                {"kind": "nd", "weight": 2},
            ],
            source="Wang et al., Improving Knowledge Distillation via Regularizing Feature Norm and Direction, 2023, "
            "for resnet32x4 to resnet8x4 on CIFAR-100, warm-up of 20 of 240 epochs",
        )
    }
    directions: Tensor

    def build(self, context: Context) -> None:
        """Learn the class centres."""
        (ours,), (theirs,) = self.shapes(context)
        if ours != theirs:
            self.adapter = nn.Linear(ours, theirs)
        sums = torch.zeros(context.classes, theirs)
        for batch, said in context.survey():
            classes = torch.where(batch.labels == HIDDEN, said.logits.argmax(dim=-1), batch.labels).cpu()
            sums.index_add_(0, classes, fixed(said.features[self.pair[1]]).flatten(1).cpu().to(sums.dtype))
        self.register_buffer("directions", unit(sums))  # the mean's direction is the sum's

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Between 0 and 2."""
        assert teacher is not None
        return super().forward(student, teacher, batch.with_labels(main_classes(batch, teacher.logits)))

    def distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """The mean over samples."""
        lengths = (torch.linalg.vector_norm(f, dim=1) for f in (student, teacher))
        longer = torch.maximum(*lengths)
        longer = longer.masked_fill(longer == 0, torch.inf)
        along = (student * self.directions[batch.labels]).sum(dim=1)
        return (1 - along / longer).mean()


class PrimeAware(OnLayer):
    """Prime-aware adaptive distillation: mean over B·D of (f_t − f_s)² / (1e-6 + exp v) + v.

    Taps one layer of each, flattened to (B, ·), the embedding by default; where the widths differ the student's goes
    through a linear layer. v (B, D), the logarithm of how uncertain each number is, is BN(linear layer) of the
    student's layer.

    Source: Zhang, Lan, Dai, Zeng, Zhou, Zhou, "Prime-Aware Adaptive Distillation", 2020; code: torchdistill.
    Trap: the loss may be negative. A batch of one has no statistics and is refused.
    """

    class Config(LayerConfig):
        """Options of ``pad``."""

        kind: Literal["pad"]

    config: Config
    published = {
        "pad": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "pad", "weight": 1}],
            source="Zhang, Lan, Dai, Zeng, Zhou, Zhou, Prime-Aware Adaptive Distillation, 2020; weights of the "
            "torchdistill port, for ImageNet",
        )
    }

    def build(self, context: Context) -> None:
        """Make the estimator, and the projector where the widths differ."""
        (ours,), (theirs,) = self.shapes(context)
        if ours != theirs:
            self.adapter = nn.Linear(ours, theirs)
        self.estimator = pointwise((ours,), (theirs,), bias=True)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The weighted squared error; it may be negative."""
        ours, theirs = self.layers(student, teacher)
        uncertainty = full(self.log_variances(ours))
        error = (theirs - full(self.adapter(ours))).square()
        with exact(ours):
            return (error / (1e-6 + uncertainty.exp()) + uncertainty).mean()

    def log_variances(self, student: Tensor) -> Tensor:
        """v (B, D), from the student's layer."""
        uncertainty: Tensor = self.estimator(student)
        return uncertainty
