"""Losses of students that teach themselves: by what they said, by the average of their weights, by their depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdrun.contracts import HIDDEN, Batch, Context, Loss, LossConfig, Model, Outputs, Published, Taps
from kdrun.errors import Mismatch, did_you_mean
from kdrun.losses.adapters import Shape, bottleneck, pointwise, pool
from kdrun.losses.base import Temperature, said_of
from kdrun.losses.labels import CrossEntropy, or_one, sides
from kdrun.losses.matching import FORMS, stages_of
from kdrun.losses.numerics import exact, fixed, follow, full, relative_entropy
from kdrun.taps import LayerTable


class PastSelf(Loss):
    """The student's own past: mean over labelled samples of −Σ_c q_c log softmax(z)_c, q = (1 − a)·onehot + a·p.

    Logits (B, C), labels (B,). p is what the student said of the sample when it last saw it in an earlier epoch, its
    softmax; the label where it has not. a grows in equal steps from epoch to epoch up to `share`. Under mixup each
    sample has two labels and two pasts with their shares, and is remembered where its own share is the larger one.

    Source: Kim, Ji, Yoon, Hwang, "Self-Knowledge Distillation with Progressive Refinement of Targets", 2021.
    Trap: it stands in the place of the cross-entropy, not beside it; what was said was said of another augmentation.
    Keeps 2·N·C numbers.
    """

    needs_teacher = False

    class Config(LossConfig):
        """Options of ``ps-kd``."""

        kind: Literal["ps-kd"]
        share: float = Field(default=0.8, ge=0, le=1)
        """what the past counts in the last epoch"""

    config: Config
    remembers = True
    published = {
        "ps-kd": Published(
            losses=[{"kind": "ps-kd", "weight": 1}],
            source="Kim, Ji, Yoon, Hwang, Self-Knowledge Distillation with Progressive Refinement of Targets, 2021",
            tune={"ps-kd.share": [0.6, 0.7, 0.8, 0.9]},
        )
    }
    past: Tensor
    now: Tensor
    epoch: Tensor
    share: Tensor

    def build(self, context: Context) -> None:
        """Make room for what is said of every training sample: in the epochs before, and in this one."""
        for name in ("past", "now"):
            self.register_buffer(name, torch.zeros(context.samples, context.classes))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))
        self.register_buffer("share", torch.zeros(()), persistent=False)

    def begin(self, epoch: int, epochs: int) -> None:
        """Take what was said in the epoch before for the past."""
        self.share.fill_(self.config.share * (epoch + 1) / epochs)
        if epoch != int(self.epoch):
            self.past.copy_(self.now)
            self.epoch.fill_(epoch)

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The weighted mean; 0, with a graph, where no label is seen."""
        logits = full(student.logits)
        wanted = torch.zeros_like(logits)
        places = [batch.index] if batch.mix is None else [batch.index, batch.index[batch.mix.partner]]
        for (labels, share), index in zip(sides(batch), places, strict=True):
            hot = F.one_hot(labels.clamp_min(0), logits.shape[1]).to(logits.dtype)
            past = self.past[index].to(logits.dtype)
            past = torch.where(past.any(dim=1, keepdim=True), past, hot)
            wanted = wanted + share[:, None] * torch.lerp(hot, past, self.share.to(logits.dtype))
        seen = wanted.sum(dim=1)
        # Hidden rows are cut off before the softmax, so that even infinite logits leave no NaN behind.
        log_p = F.log_softmax(logits.masked_fill((seen == 0)[:, None], 0), dim=-1)
        self._remember(log_p.detach().exp(), batch)
        return -(wanted * log_p).sum() / or_one(seen.sum())

    @torch.no_grad()
    def _remember(self, said: Tensor, batch: Batch) -> None:
        """Keep what is said of the labelled samples; of a query, or a mixed one, it may be of another sample.

        Of a sample that stands in a batch twice, it is what was said last.
        """
        known = batch.labels != HIDDEN
        if batch.mix is not None:
            known &= batch.mix.share >= 0.5
        same = (batch.index[:, None] == batch.index) & known
        last = (same * torch.arange(1, len(batch) + 1, device=same.device)).amax(
            dim=1
        )  # 0 where there is none
        rows = torch.where((last > 0)[:, None], said.to(self.now.dtype)[last - 1], self.now[batch.index])
        self.now.index_copy_(0, batch.index, rows)  # of one sample all rows are equal


class MeanTeacher(Loss):
    """Mean teacher: mean over samples and classes of (softmax(z) − softmax(z'))², z' by the average of the weights.

    Logits (B, C). The average θ' begins where the student does; after step t, counted from 1 and whatever the term
    weighs, it is a·θ' + (1 − a)·θ with a = min(1 − 1/(t + 1), `ema`), and so are BatchNorm's statistics. It looks at
    the samples as the student does in training: dropout draws other units for it, BatchNorm normalises by the batch;
    not so in stages that train no `adapters`. It is thrown away when the student has learnt.

    Source: Tarvainen, Valpola, "Mean teachers are better role models: Weight-averaged consistency targets improve
    semi-supervised deep learning results", 2017.
    Trap: where both see the same, without dropout, there is little to learn; a `view` of the same augmentation is the
    authors' noise. They predict by the average; here the student does, or its own one, `training.ema`. A mean over
    classes makes the weight large; theirs, of a long training, can hold a short one back. Where few samples have a
    label, few stand in a batch, and chance leads: `training: {labelled_share: 0.5}`.
    """

    class Config(LossConfig):
        """Options of ``mean-teacher``."""

        kind: Literal["mean-teacher"]
        ema: float = Field(default=0.99, ge=0, lt=1)
        """decay of the average; less in the first steps"""
        view: str | None = None
        """the view of the samples that the average looks at, such as `strong`, where the data set has a `strong_view`;
        the student's own where nothing is said"""

        @property
        def passes(self) -> int:
            """One of the average."""
            return 1

    config: Config
    needs_teacher = False
    learns_unlabelled = True
    published = {
        "mean-teacher": Published(
            losses=[
                {"kind": "ce", "weight": 1},
                {"kind": "mean-teacher", "weight": 100, "schedule": {"kind": "warmup", "share": 0.2667}},
            ],
            source="Tarvainen, Valpola, Mean teachers are better role models: Weight-averaged consistency targets "
            "improve semi-supervised deep learning results, 2017, for CIFAR-10, where the weight rises in a sigmoid "
            "over 40 000 of 150 000 steps",
        )
    }
    average: Model
    view: str
    student_state: Callable[[], Mapping[str, Tensor]]

    def build(self, context: Context) -> None:
        """Begin the average; raises ``Mismatch`` where it cannot look at the view."""
        self.view, self.student_state = self.config.view or context.view, context.student_state
        shapes = {name: tuple(x.shape[1:]) for name, x in context.batch.views.items()}
        seen = shapes[context.view]
        if shapes.get(self.view) != seen:
            alike = [name for name, shape in shapes.items() if shape == seen]
            raise Mismatch(
                f"the data set has no view '{self.view}' of the student's shape, {seen}",
                f"{did_you_mean(self.view, alike)}; a data set of pictures offers one as `strong_view`",
                "view",
            )
        self.average = context.twin(1).requires_grad_(False)
        self.average.load_state_dict(self.student_state())

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The mean squared difference, in [0, 2/C]."""
        with torch.no_grad():
            theirs = full(self.average(batch.views[self.view]))
        ours = full(student.logits)
        with exact(ours):
            return F.mse_loss(F.softmax(ours, dim=-1), F.softmax(theirs, dim=-1))

    def end_step(self, step: int) -> None:
        """Have the average follow the student."""
        decay = min(1 - 1 / (step + 1), self.config.ema)
        follow(self.average.state_dict(), self.student_state(), decay)


class _Exit(nn.Module):
    """A classifier on a layer of a ``shape`` without the batch: what it sees, as a vector (B, D), and its logits.

    Maps are averaged down to a ``size`` (H, W) where they are larger, and go through a bottleneck; token sequences are
    averaged.
    """

    def __init__(self, shape: Shape, size: Shape, width: int, classes: int) -> None:
        super().__init__()
        self.size = [min(pair) for pair in zip(shape[1:], size or shape[1:], strict=False)]
        self.body = (
            bottleneck(shape[0], max(1, width // 4), width, last_norm=True)
            if len(shape) == 3
            else nn.Sequential(*pointwise(shape[-1:], (width,)), nn.ReLU())
        )
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (B, D) and logits (B, C)."""
        if x.ndim == 4:
            seen = self.body(pool(x, *self.size)).mean(dim=(2, 3))
        else:
            seen = self.body(x.mean(dim=1) if x.ndim == 3 else x)
        return seen, self.classifier(seen)


class Exits(Loss):
    """Be your own teacher: Σ_i (1 − α)·CE(z_i) + α·KL(softmax(z/T) ‖ softmax(z_i/T)) + λ·‖f_i − f‖², over exits i.

    An exit is a classifier after a stage of the student: logits z_i (B, C) of a vector f_i (B, D), which is the stage
    through a bottleneck (maps) or a linear layer (vectors, and means of tokens), with BatchNorm and ReLU. z (B, C) are
    the student's logits, f (B, D) its embedding, both without a gradient. CE is a mean over labelled samples, the rest
    over all. Exits are thrown away when the student has learnt.

    Source: Zhang et al., "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
    Distillation", 2019.
    Trap: there is no T². The authors' last code has no hints, and others after it take the root of ‖f_i − f‖² over the
    whole batch; here it is a mean over samples. The authors' exits shrink maps by strided convolutions; here maps are
    averaged to the size of the last stage first.
    """

    class Config(LossConfig):
        """Options of ``exits``."""

        kind: Literal["exits"]
        alpha: float = Field(default=0.3, ge=0, le=1)
        """α: what the student's logits count, and 1 − α what the labels do"""
        hint: float = Field(default=0.03, ge=0)
        """λ: factor of the squared distance to the embedding"""
        temperature: Temperature = 3.0
        """T: softens both distributions"""
        layers: list[str] | None = Field(default=None, min_length=1)
        """the student's layers that have exits; all stages but the last where nothing is said"""
        label_smoothing: float | None = Field(default=None, ge=0, le=1)
        """of the labels that the exits learn; the training's where nothing is said"""

    config: Config
    needs_teacher = False
    learns_unlabelled = True
    published = {
        "be-your-own-teacher": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "exits", "weight": 1}],
            source="Zhang et al., Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via "
            "Self Distillation, 2019; α and T of the authors' code, λ of others that follow it",
        )
    }
    layers: list[str]
    deepest: str
    size: Shape

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """The layers and the embedding; raises ``Mismatch`` where there are none, or one gives no known form."""
        if self.config.layers is not None:
            self.layers = [student.resolve(layer, "layers") for layer in self.config.layers]
        else:
            self.layers = [*stages_of(student)[:-1]]
        if not self.layers:
            raise Mismatch(
                f"'exits' come after all stages but the last, and {student.owner} has one stage",
                "use a deeper student, or name its layers as `layers`",
            )
        if unknown := [layer for layer in self.layers if len(student.shapes[layer]) not in FORMS]:
            raise Mismatch(
                f"'exits' read {', or '.join(FORMS.values())}, and {said_of(student, unknown[0])}",
                "name other layers as `layers`",
                "layers",
            )
        self.deepest = student.pooled
        last = student.shapes[student.stages[-1]] if student.stages else ()
        self.size = last[1:] if len(last) == 3 else ()
        return Taps((*self.layers, self.deepest))

    def build(self, context: Context) -> None:
        """Make the exits."""
        width = context.student.features[self.deepest].flatten(1).shape[1]
        shapes = [tuple(context.student.features[layer].shape[1:]) for layer in self.layers]
        self.exits = nn.ModuleList(_Exit(shape, self.size, width, context.classes) for shape in shapes)
        smoothing = self.config.label_smoothing
        self.labels = CrossEntropy(CrossEntropy.Config(kind="ce", label_smoothing=smoothing))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The sum over exits, ≥ 0. BatchNorm refuses a batch of one vector or map of one pixel."""
        seen = [full(student.features[layer]) for layer in self.layers]
        left = [one(x) for one, x in zip(self.exits, seen, strict=True)]
        with exact(student.logits):
            values = [self._of_exit(full(vectors), full(logits), student, batch) for vectors, logits in left]
            return torch.stack(values).sum()

    def _of_exit(self, vectors: Tensor, logits: Tensor, student: Outputs, batch: Batch) -> Tensor:
        """What one exit has to learn, of vectors (B, D) and logits (B, C); a scalar."""
        alpha, t = self.config.alpha, self.temperature
        p = F.softmax(fixed(student.logits) / t, dim=-1)
        divergence = relative_entropy(p, F.log_softmax(logits / t, dim=-1)).mean()
        labels = self.labels(Outputs(logits), None, batch)
        apart = vectors - fixed(student.features[self.deepest]).flatten(1)
        hint = apart.square().sum(dim=1).mean()
        value: Tensor = (1 - alpha) * labels + alpha * divergence + self.config.hint * hint
        return value
