"""The vocabulary: what losses, models, data sets and scores speak to each other.

Shapes are written with B (batch), C (classes), and for features either (B, D) vectors, (B, D, H, W) maps or
(B, T, D) token sequences.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, Self

import numpy as np
import torch
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from torch import Tensor, nn

from kdrun import registry
from kdrun.schedules import AnyWeightSchedule
from kdrun.schema import Schema, as_list, kind_alone
from kdrun.statistics.scores import Metric
from kdrun.taps import LayerTable, Layout

HIDDEN = -1
"""The label of a sample whose label the student may not see."""
LEFT_OUT = -1e30
"""Stands for the logit of a class that is left out, below those that a teacher rules out."""

Split = Literal["train", "validation", "test"]
Side = Literal["labels", "teachers"]
"""What a term learns from."""
Arithmetic = Literal["fp32", "bf16", "bf16 autocast"]
Combine = Literal["mean", "mean-logits", "mean-loss", "fixed", "fitted", "entropy", "best", "random"]

ONE_OF_THEM = ("best", "random")
"""Ways to combine several teachers that hear one of them in each step."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Mixup or cutmix: ``partner`` (B,) int64 positions in the batch, ``share`` (B,) the sample's own in [0, 1]."""

    partner: Tensor
    share: Tensor


class Part(NamedTuple):
    """Samples of a batch, one after the other, that are of one environment, and how many actions there are in it."""

    environment: str
    samples: int
    classes: int


@dataclass(frozen=True, slots=True)
class Acted:
    """What a student did in the states of a batch, and what came of it.

    ``action`` (B,) int64, whose ``log_probability`` (B,) was that of the policy that acted; its ``advantage`` (B,) over
    what was expected there, and the ``outcome`` (B,) that is to be expected: the rewards from there on, discounted.
    """

    action: Tensor
    log_probability: Tensor
    advantage: Tensor
    outcome: Tensor

    @property
    def parts(self) -> dict[str, Tensor]:
        """All of it by name."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    def to(self, device: torch.device) -> Acted:
        """The same on another device."""
        return Acted(*(part.to(device) for part in self.parts.values()))

    def rows(self, rows: Tensor | slice) -> Acted:
        """What was done in some of the states, by their positions (K,)."""
        return Acted(*(part[rows] for part in self.parts.values()))


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples as every loss, model and score sees them.

    ``views`` are the inputs by name, each (B, …) float32; ``labels`` (B,) int64, ``HIDDEN`` where the student
    may not see them; ``index`` (B,) int64, the sample's place in its split. Labels stay integers under mixup.
    ``copy`` says which fixed copy of the samples it is, 0 where there are none; ``all_seen`` that no label is hidden,
    which the labels would tell too, but a GPU has to be waited for. ``acted`` is there where the samples are states in
    which the student itself acted, for rewards; ``parts`` are those of several environments, in their order, of a data
    set that has several.
    """

    views: dict[str, Tensor]
    labels: Tensor
    index: Tensor
    mix: Mix | None = None
    copy: int = 0
    all_seen: bool = False
    acted: Acted | None = None
    parts: tuple[Part, ...] = ()

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        mix = self.mix and Mix(self.mix.partner.to(device), self.mix.share.to(device))
        acted = self.acted and self.acted.to(device)
        views = {name: view.to(device) for name, view in self.views.items()}
        labels, index = self.labels.to(device), self.index.to(device)
        return Batch(views, labels, index, mix, self.copy, self.all_seen, acted, self.parts)

    def with_labels(self, labels: Tensor) -> Batch:
        """The same samples with other labels."""
        return replace(self, labels=labels, all_seen=False)

    def rows(self, rows: Tensor | slice) -> Batch:
        """Some of the samples, by their positions (K,), under mixup with the labels that they mostly are of."""
        labels = self.main_labels[rows]
        acted = self.acted and self.acted.rows(rows)
        views = {name: view[rows] for name, view in self.views.items()}
        return Batch(views, labels, self.index[rows], None, self.copy, self.all_seen, acted)

    @property
    def main_labels(self) -> Tensor:
        """The labels (B,), under mixup those of the larger share of each sample."""
        if self.mix is None:
            return self.labels
        return torch.where(self.mix.share >= 0.5, self.labels, self.labels[self.mix.partner])


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a predictor says of a batch: ``logits`` (B, C) and the tapped layers' outputs by name.

    ``views`` are its outputs for further views of the same samples, where a loss asked for them.
    """

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)
    views: dict[str, Outputs] = field(default_factory=dict)

    def at(self, head: str) -> Outputs:
        """The same with the logits that a tapped layer gives, in float32."""
        views = {name: said.at(head) for name, said in self.views.items()}
        return Outputs(self.features[head].float(), self.features, views)

    def rows(self, rows: Tensor | slice, classes: int | None = None) -> Outputs:
        """What it says of some of the samples, by their positions (K,), and of the first so many classes."""
        features = {name: feature[rows] for name, feature in self.features.items()}
        views = {name: said.rows(rows, classes) for name, said in self.views.items()}
        return Outputs(self.logits[rows, :classes], features, views)


@dataclass(frozen=True, slots=True)
class Spec:
    """The form of a data set: each view's shape without the batch, and the number of classes.

    ``acts`` says that the samples are states in which a student may act. ``units`` tells what a view's numbers are,
    once the set is loaded; where it is None nobody knows yet, or at all.
    """

    shapes: dict[str, tuple[int, ...]]
    classes: int
    acts: bool = False
    units: Callable[[str], Units] | None = field(default=None, compare=False, repr=False)

    @property
    def default_view(self) -> str:
        """The view that a model sees when its config names none."""
        return next(iter(self.shapes))

    def random_batch(self, size: int, seed: int = 0) -> Batch:
        """Standard normal inputs and labels in turn: to learn shapes from, never to train on."""
        draw = torch.Generator().manual_seed(seed)
        views = {name: torch.randn(size, *shape, generator=draw) for name, shape in self.shapes.items()}
        labels = torch.arange(size) % self.classes
        worth = torch.linspace(-1, 1, size)
        acted = Acted(labels, torch.zeros(size), worth, worth) if self.acts else None
        return Batch(views, labels, torch.arange(size), acted=acted)

    def of(self, environment: str | None) -> Spec:
        """The form of one environment's samples, where there are several; itself where there is one."""
        return self


@dataclass(frozen=True, slots=True)
class JointSpec(Spec):
    """The form of samples of several environments, by the forms of their ``parts``, which all have the same views.

    A view is those of all environments side by side, zeros where a sample is of another one, and then a number for each
    environment, 1 for the sample's own. There are as many classes as the environment with most actions has.
    """

    parts: Mapping[str, Spec] = field(default_factory=dict)

    @classmethod
    def joining(cls, parts: Mapping[str, Spec], units: Callable[[str], Units] | None = None) -> JointSpec:
        """The form of those of several environments, whose views are rows of numbers."""
        views = next(iter(parts.values())).shapes
        widths = {view: sum(part.shapes[view][0] for part in parts.values()) + len(parts) for view in views}
        most = max(part.classes for part in parts.values())
        return cls({view: (width,) for view, width in widths.items()}, most, units=units, parts=parts)

    def of(self, environment: str | None) -> Spec:
        """The form of one environment's samples; of all where none is named."""
        return self if environment is None else self.parts[environment]

    def columns(self, view: str) -> dict[str, slice]:
        """Where in a view the numbers of each environment are."""
        ends = [*accumulate(part.shapes[view][0] for part in self.parts.values())]
        return {name: slice(*pair) for name, pair in zip(self.parts, pairwise([0, *ends]), strict=True)}

    @property
    def flags(self) -> dict[str, int]:
        """Where in every view, counted from its end, the number is that tells whether a sample is of an environment."""
        return {name: number - len(self.parts) for number, name in enumerate(self.parts)}

    def joined(self, batches: Mapping[str, Batch]) -> Batch:
        """Batches of some environments as one, in their order."""
        views = {view: self._side_by_side(view, batches) for view in self.shapes}
        parts = tuple(Part(name, len(one), self.parts[name].classes) for name, one in batches.items())
        labels, index = (
            torch.cat(of) for of in zip(*((one.labels, one.index) for one in batches.values()), strict=True)
        )
        return Batch(views, labels, index, parts=parts)

    def _side_by_side(self, view: str, batches: Mapping[str, Batch]) -> Tensor:
        columns, rows = self.columns(view), []
        for name, one in batches.items():
            seen = one.views[view]
            rows.append(seen.new_zeros(len(one), *self.shapes[view]))
            rows[-1][:, columns[name]], rows[-1][:, self.flags[name]] = seen, 1
        return torch.cat(rows)

    def shared(self, size: int) -> dict[str, int]:
        """So many samples dealt out to the environments, alike but for one more of the first ones."""
        each, rest = divmod(size, len(self.parts))
        return {name: each + (number < rest) for number, name in enumerate(self.parts)}

    def random_batch(self, size: int, seed: int = 0) -> Batch:
        """Standard normal inputs and labels in turn, of all environments."""
        shares = {name: share for name, share in self.shared(size).items() if share}
        return self.joined({name: self.parts[name].random_batch(n, seed) for name, n in shares.items()})


@dataclass(frozen=True)
class Units:
    """What a view's numbers (F,), flattened, are called, and how those who made the data measure them.

    A model sees ``(raw - offset) * scale`` as float32, both (F,) float64; a number of scale 0 is always seen as 0.
    What ``seen`` gives is that to the bit, and rises.
    """

    names: tuple[str, ...]
    offset: np.ndarray
    scale: np.ndarray

    def seen(self, raw: np.ndarray, of: int) -> np.ndarray:
        """Raw values of one of the numbers as a model sees them, float32."""
        shifted: np.ndarray = (np.asarray(raw, np.float64) - self.offset[of]) * self.scale[of]
        return shifted.astype(np.float32)

    def raw(self, seen: np.ndarray, of: int) -> np.ndarray:
        """Values of one of the numbers as they are measured, of such as a model sees; up to rounding."""
        measured: np.ndarray = np.asarray(seen, np.float64) / self.scale[of] + self.offset[of]
        return measured


class Predictor(Protocol):
    """Anything that predicts: a network, an ensemble, a tree."""

    def __call__(self, batch: Batch) -> Outputs:
        """Logits (or log-probabilities) of shape (B, C), and the features that were asked for."""
        ...


class Critic(Protocol):
    """What tells how much reward is to be expected; one that comes a step later counts ``gamma`` of its own.

    ``gae_lambda`` says how far the rewards themselves are looked at, and not what is expected after them: 0 for one
    step only, 1 for all.
    """

    @property
    def gamma(self) -> float:
        """Between 0 and 1."""
        ...

    @property
    def gae_lambda(self) -> float:
        """Between 0 and 1."""
        ...

    def value(self, student: Outputs) -> Tensor:
        """The rewards (B,) from each state on, discounted, as expected of a student that says this of them."""
        ...


class Pupil(Protocol):
    """A student, as a data set sees it that grows with it.

    Its ``gathered`` is what was gathered for it, in the data set's own words, and is kept in its checkpoints.
    """

    draw: Draw
    gathered: dict[str, Tensor]

    @property
    def critic(self) -> Critic | None:
        """What tells how much reward it is to expect, where it learns from rewards."""
        ...

    def exported(self) -> Predictor:
        """What it is now, as it would be scored."""
        ...

    def look(self, batch: Batch) -> Outputs:
        """What it says of a batch while it learns, and what its critic looks at; it learns nothing from it."""
        ...


class Teacher(Predictor, Protocol):
    """What answers in a teacher's place during a training: the teacher itself, or its outputs looked up."""

    arithmetic: Arithmetic
    """What the outputs were computed in."""


class Component:
    """A class that a config can name; see ``registry``."""

    Config: ClassVar[type[Schema]]
    family: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Config" in cls.__dict__ and "kind" in cls.Config.model_fields:
            registry.FAMILIES[cls.family].register(cls)


# ---------------------------------------------------------------------------------------------- models


class ModelConfig(Schema):
    """Options that every model has."""

    kind: str
    initial_weights: Path | None = Field(default=None, strict=False)
    """a local file (safetensors or .pt) to start from; its classifier is replaced where the classes differ"""


class Model(Component, nn.Module):
    """A network with named stages.

    Subclasses take ``(config, shape, classes)``, where ``shape`` is the input's without the batch, and raise
    ``Mismatch`` where they cannot read such an input. No layer before a tap works in place.
    """

    family = "model"

    made_from: ModelConfig
    """The config, set by whoever builds it."""
    lens: Callable[[Tensor], Tensor] | None = None
    """What is made of an input before it is read, by a hook; see ``models.lens``."""
    heads: Callable[[Tensor, Tensor], Tensor] | None = None
    """What is made of inputs and outputs, where each of several environments has a head; see ``models.heads``."""
    stages: tuple[str, ...]
    """Names of the layers whose outputs are the stages, shallow to deep."""
    preactivations: tuple[str, ...] = ()
    """For each stage the name of the layer whose output its last ReLU gets; empty where there are none."""
    norms: tuple[str, ...] = ()
    """For each stage the name of the BatchNorm before its last ReLU; empty where there are none."""
    token_layout: Layout | None = None
    """Where its tokens (B, T, D) come from; None where it has none, or nobody knows."""
    attentions: Mapping[str, int] = {}
    """Names of the layers whose outputs (B, T, 3·D) are the queries, keys and values of self-attention, each of all
    heads side by side, with their numbers of heads; shallow to deep."""
    pooled: str
    """Name of the layer whose output is the embedding (B, D) that the classifier sees."""
    head: str
    """Name of the classifier."""
    logits_for: Mapping[Side, str] = {}
    """Where the classifier is two, whose logits are averaged: the names of the one that learns from labels and of the
    one that learns from teachers."""
    fitted: ClassVar[bool] = False
    """Whether it is fitted at once, in no steps and without gradients; see ``models.fitted``."""
    reinforced: ClassVar[bool] = False
    """Whether it learns from rewards, by acting in its data set's environment; see ``models.agents``."""
    combines: ClassVar[bool] = False
    """Whether it is made of finished models, and given them in the place of a shape; see ``models.together``."""
    memory: int = 0
    """How many training samples it holds at most, which it is given before its first step."""
    held_buffers: tuple[str, ...] = ()
    """Names of the buffers that hold them, and what follows from them: no weights that another could start from."""
    compresses: ClassVar[bool] = False
    """Whether it is made of a finished student, and what it makes is that one, changed; see ``models.compressed``."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of inputs (B, …)."""

    def remember(self, samples: Tensor) -> None:
        """Hold training samples (M, …) as its ``lens`` shows them, M at most ``memory``.

        Its weights and its shapes stay as they are.
        """
        raise AssertionError(f"{type(self).__name__} has a memory, and does not say how it remembers")


# ---------------------------------------------------------------------------------------------- losses


class Mask(Schema):
    """Which samples of a batch a term looks at: it is their mean times their share of the batch."""

    kind: Literal["teacher-correct", "teacher-confident", "labelled", "unlabelled"]
    """those that the teacher gets right, is sure of, or whose label the student sees, or does not see"""
    confidence: float = Field(default=0.9, gt=0, lt=1)
    """teacher-confident: the least probability of the teacher's most probable class"""


class LossConfig(Schema):
    """Options that every term of a mix has."""

    kind: str
    weight: float = Field(default=1.0, ge=0)
    """the term's factor in the sum"""
    schedule: AnyWeightSchedule | None = None
    """how the weight changes with the epochs: constant, warmup, linear, cosine or step"""
    first_epoch: int = Field(default=1, ge=1)
    """the first epoch in which the term counts"""
    last_epoch: int | None = Field(default=None, ge=1)
    """the last epoch in which the term counts"""
    mask: Annotated[Mask, BeforeValidator(kind_alone)] | None = None
    """the samples that the term looks at: teacher-correct, teacher-confident, labelled or unlabelled"""
    name: str | None = None
    """what the term is called in logs and in `set:`; its kind where nothing is said"""
    teacher: str | list[str] | None = None
    """the teacher, or teachers, of this term; with one teacher in the config it need not be said"""
    combine: Combine = "mean"
    """several teachers: the mean of their logits (mean-logits), their losses (mean-loss) or else their probabilities:
    each alike (mean), by `teacher_weights` (fixed), by what explains the validation labels best (fitted), or by how
    sure each is of a sample (entropy); or one teacher in each step, the one that explains its labels best, and
    without any label the surest (best), or any (random)"""
    teacher_weights: list[Annotated[float, Field(ge=0)]] | None = Field(default=None, min_length=2)
    """combine: fixed: a weight for each of the term's teachers, in their order; only their ratios count"""
    shuffle_teacher: bool = False
    """what the teachers say is shuffled over the batch, anew in each step: what is left is regularisation"""

    @property
    def label(self) -> str:
        """The term's name."""
        return self.name or self.kind

    @property
    def teachers(self) -> list[str]:
        """The names of its teachers, none where it looks at none or does not say."""
        return as_list(self.teacher)

    @property
    def passes(self) -> int:
        """What networks like the student's cost that it runs, in forward passes a step; a backward pass costs two."""
        return 0

    @property
    def networks(self) -> Sequence[ModelConfig]:
        """Networks of other architectures that it trains along with the student."""
        return ()

    def weight_in(self, epoch: int, epochs: int) -> float:
        """The weight in an epoch, counted from 0, of so many."""
        if not self.first_epoch <= epoch + 1 <= (self.last_epoch or epochs):
            return 0.0
        return self.weight * (self.schedule.factor(epoch, epochs) if self.schedule else 1.0)


class Twin(Protocol):
    """Makes networks of a student's architecture, or of another one, by their number."""

    def __call__(self, number: int, model: ModelConfig | None = None) -> Model:
        """A network at its first step."""
        ...


@dataclass(frozen=True)
class Context:
    """What a loss may look at when it builds its adapters, before the optimizer exists.

    ``student`` and ``teacher`` are the outputs for ``batch``, one dry batch, with the features that the loss
    tapped; ``samples`` and ``classes`` count the training set's, ``batch_size`` the samples of every step;
    ``labels`` are the training labels as the student sees them; ``teacher_state`` the teacher's weights and
    statistics, read-only, and ``teacher_head`` the name of its classifier. ``survey`` goes once over the training
    set, not augmented, with the labels that the student sees and the teacher's outputs. ``view`` is what the student
    looks at, and ``twin`` makes networks of its architecture, or of a given one, that start from other weights, by
    their number from 1 on; ``student_state`` gives its weights and statistics as they are when it is called, read-only.
    """

    batch: Batch
    student: Outputs
    teacher: Outputs | None
    samples: int
    classes: int
    batch_size: int
    labels: Tensor
    teacher_state: Mapping[str, Tensor]
    teacher_head: str | None
    survey: Callable[[], Iterable[tuple[Batch, Outputs]]]
    view: str
    twin: Twin
    student_state: Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Taps:
    """The layers whose outputs a loss wants, in pairs where it compares them, and further views of the batch."""

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    crosswise: bool = False
    """Whether every layer of one is compared with every layer of the other."""

    def __str__(self) -> str:
        if self.crosswise:
            return f"each of {', '.join(self.student)} with each of {', '.join(self.teacher)}"
        return ", ".join(f"{s} with {t}" for s, t in zip(self.student, self.teacher, strict=True))


@dataclass(frozen=True, slots=True)
class Published:
    """The published mix of a method: its terms and stages as in YAML, and where they come from.

    ``tune`` are the values of its options that its authors tried, for ``kdrun tune``, by term and key.
    """

    losses: list[dict[str, Any]]
    source: str
    stages: list[dict[str, Any]] = field(default_factory=list)
    tune: dict[str, Any] = field(default_factory=dict)


class Loss(Component, nn.Module):
    """One term of a mix: batch → an unweighted scalar.

    A subclass may tap layers (``taps``), make adapters (``build``) and say what a model without gradients can
    learn from (``target``). There is one instance for each pair of term and teacher. Parameters and buffers are
    trained, clipped and checkpointed with the student and never exported, except those of the submodules named
    by ``at_inference``, through which an exported student's logits come (``predict``): the first of them gives
    its deepest stage, the last two its embedding and its logits.
    """

    family = "loss"
    needs_teacher: ClassVar[bool] = True
    learns_unlabelled: ClassVar[bool] = False
    """Whether it learns from samples without a label, though it needs no teacher."""
    of_rewards: ClassVar[bool] = False
    """Whether it learns from what came of the student's own actions, ``acted`` in each batch; it is a ``Critic``."""
    remembers: ClassVar[bool] = False
    """Whether it keeps something of each training sample by its ``index``: none can be added as it learns."""
    on_logits: ClassVar[bool] = True
    """Whether the teacher's logits are all that the loss sees of it (so that several can be combined)."""
    whole_batch: ClassVar[bool] = False
    """Whether it needs every sample of a batch (so that no mask can be set)."""
    weighs_samples: ClassVar[bool] = False
    """Whether the sums of its target's rows are what samples count in a fit; else all count alike."""
    published: ClassVar[Mapping[str, Published]] = {}
    """Published mixes that use the loss, by method name."""
    at_inference: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def temperature(self) -> float:
        """At which temperature several teachers' probabilities are to be averaged."""
        return float(getattr(self.config, "temperature", 1.0))

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """The layers wanted; raises ``Mismatch`` where they do not exist or cannot be compared."""
        return Taps()

    def build(self, context: Context) -> None:
        """Make the adapters from one dry batch; raises ``Mismatch`` where shapes cannot be reconciled."""

    def begin(self, epoch: int, epochs: int) -> None:
        """Told before the first step of each epoch, counted from 0, of so many, and after a resume."""

    def end_step(self, step: int) -> None:
        """Told after each step of the student how many it took, whatever the term weighs."""

    @abstractmethod
    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The unweighted scalar."""

    def pretrain(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The unweighted scalar in a stage that trains the adapters only."""
        return self.forward(student, teacher, batch)

    def target(self, teacher: Outputs | None, batch: Batch) -> Tensor | None:
        """Class probabilities (B, C) that minimise the loss; a row's sum is how much of its sample it looks at.

        A row of a loss that ``weighs_samples`` may have any sum, 0 where its sample does not count. A loss that does
        not define it has none, and nothing that is fitted without gradients can learn from it.
        """
        return None

    @classmethod
    def has_target(cls) -> bool:
        """Whether it says which class probabilities minimise it."""
        return cls.target is not Loss.target

    def predict(self, student: Outputs) -> Tensor:
        """Logits (B, C) of an exported student, from the features that the loss tapped.

        Only losses that declare ``at_inference`` are asked, and each of them defines it.
        """
        raise AssertionError(
            f"{type(self).__name__} declares parts at inference and does not say how they predict"
        )


class JointLoss(Loss):
    """A loss that weighs several teachers by itself.

    It gets ordered mappings by the teachers' names wherever a ``Loss`` gets one teacher, and is one instance.
    """

    def taps(  # type: ignore[override]  # teachers by name
        self, student: LayerTable, teachers: Mapping[str, LayerTable | None]
    ) -> Mapping[str, Taps]:
        """The layers wanted of the student and of each teacher."""
        return {name: Taps() for name in teachers}

    def build(self, contexts: Mapping[str, Context]) -> None:  # type: ignore[override]  # teachers by name
        """Make the adapters, from the context of each teacher."""

    @abstractmethod
    def forward(  # type: ignore[override]  # teachers by name
        self, student: Outputs, teachers: Mapping[str, Outputs], batch: Batch
    ) -> Tensor:
        """The unweighted scalar."""


# -------------------------------------------------------------------------------------------- data sets


def _as_name(value: object) -> object:
    return str(value) if type(value) is int else value


ClassName = Annotated[str, BeforeValidator(_as_name, json_schema_input_type=int | str)]


def _two_or_more(names: list[str]) -> list[str]:
    if len(set(names)) < 2:
        raise ValueError("of one class every neighbour would be right; name two or more")
    return sorted(set(names))


class TransferSet(Schema):
    """Further samples, of which nobody knows a label, for students that learn from a teacher or without labels."""

    root: Path | None = Field(default=None, strict=False)
    """a folder of pictures, however deep they lie in it; what the folders are called says nothing"""
    path: Path | None = Field(default=None, strict=False)
    """a .npz file with `x` (pictures as bytes from 0 to 255, or floats from 0 to 1), or a .csv file with the columns of
    the data set; labels in it are not looked at"""

    @model_validator(mode="after")
    def _say_where(self) -> Self:
        if (self.root is None) == (self.path is None):
            raise ValueError("write `root: FOLDER` of pictures, or `path: FILE` of a .npz or .csv file")
        return self


class DatasetConfig(Schema):
    """Options that every data set has."""

    kind: str
    root: Path = Field(default=Path("data"), strict=False)
    """the folder where its files lie or are downloaded to"""
    validation: float = Field(default=0.0, ge=0, lt=1)
    """share of the training set held out, stratified by class"""
    labels_per_class: int | None = Field(default=None, ge=1)
    """how many labels of each class the students see; the teachers see all, but for those with `labels: given`"""
    transfer_set: TransferSet | None = None
    """further samples, of whatever class, for students with a teacher; no teacher is trained on them, but for those
    with `labels: given`, and no label of them is looked at: `{root: FOLDER}` of pictures, or `{path: FILE}`, a .npz
    with `x` or a .csv with the same columns"""
    leave_out: (
        Annotated[list[ClassName], Field(min_length=1), AfterValidator(lambda names: sorted(set(names)))]
        | None
    ) = None
    """classes, as the set calls them, of which the students never see a sample but what a transfer set may hold; the
    teachers, but for those with `labels: given`, and the test set have them, and inputs are normalised by all training
    samples"""
    unseen: Annotated[list[ClassName], AfterValidator(_two_or_more)] | None = None
    """classes, as the set calls them, of which nobody sees a sample in training, be it a teacher or a student; what
    weights from elsewhere have seen, nobody knows. The test set is of these classes alone, and only `metric: recall@1`
    can score it; an epoch has as many steps as with all classes"""
    metric: Metric = "accuracy"
    """the score of the comparison; recall@1 is the share of the samples whose nearest other one, by the cosine of the
    embeddings that the classifiers read, is of the same class"""
    seed: int = 0
    """draws the test split where a set has none, the validation share, the labelled subset and fixed copies"""


class Queries(Schema):
    """Questions to the teachers: samples made of those of the training set, which have no label.

    A network finds them among the samples of each batch, as many to one as are asked for; a model that is fitted at
    once is fitted to the whole training set and to all of its queries.
    """

    per_sample: int = Field(default=10, ge=1, le=1000)
    """how many queries for each sample of the training set"""
    jitter: float = Field(default=0.5, ge=0, le=100)
    """normal noise, in standard deviations of each number over the training set; 0 for none"""
    mix: float = Field(default=0.0, ge=0)
    """α of the Beta distribution by which each query is mixed with another sample, before the noise; 0 for none"""

    @model_validator(mode="after")
    def _ask_something_new(self) -> Self:
        if not self.jitter and not self.mix:
            raise ValueError("without 'jitter' and 'mix' the queries are the samples; write one above 0")
        return self


class Rollouts(Schema):
    """States that are gathered while a student learns, and what the teacher would do there.

    A student that imitates its teacher's own states never sees those that its own mistakes lead to: Ross, Gordon,
    Bagnell, "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning", 2011 (DAgger).
    One that learns from rewards acts by `source: self`.
    """

    source: Literal["teacher", "student", "mixed", "self"] = "student"
    """who acts in the episodes: the teacher, the student as it is by then, or in each step one of them; with `self` the
    student, by chance, as probable as it takes each action to be, and it learns of the latest states alone"""
    states: int = Field(default=1000, ge=1)
    """how many states are gathered before each epoch but the first; in whole episodes, the last one cut off. With
    `self` before the first, too, and episodes go on in the next epoch"""
    start: int | None = Field(default=None, ge=1)
    """with how many of the recorded states it begins; with all where nothing is said"""
    cap: int = Field(default=100_000, ge=1)
    """how many states are kept at most, the recorded ones among them; the oldest ones go first"""
    teacher_share: float = Field(default=0.5, gt=0, lt=1)
    """mixed: how probable it is that the teacher acts in a step"""


@dataclass(frozen=True, slots=True)
class Draw:
    """How batches are drawn for a group: equal draws give equal batches.

    ``labels`` says whose samples and labels are seen: all of the training set, or what is given to the students.
    ``labelled_only`` draws from the labelled samples only, ``labelled_share`` is theirs in each batch where it is not
    left to chance. ``mixup`` and ``cutmix`` are the α of their Beta
    distributions, 0 for none; with both, each batch is mixed in one of the two ways. Batches have their share
    of ``queries``, and are of what was gathered by ``rollouts``, whose states are the ``actor``'s own where it has one.
    Samples that a teacher has shown are those of the ``demonstrator``. ``purpose`` keeps the orders of teachers and
    students apart.
    """

    seed: int
    batch_size: int
    labels: Literal["all", "given"] = "given"
    labelled_only: bool = False
    labelled_share: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0
    queries: Queries | None = None
    rollouts: Rollouts | None = None
    actor: str = ""
    demonstrator: str = ""
    purpose: str = "student"

    @property
    def given(self) -> bool:
        """Whether it sees what the students see, and not what the teachers see."""
        return self.labels == "given"


@dataclass(frozen=True)
class Played:
    """What a policy did in E episodes, and the states in which it was asked.

    ``returns`` (E,) float64 are sums of rewards, ``lengths`` (E,) int64 steps; an episode is ``truncated`` (E,) bool
    where the limit of time ended it, and not the environment. Of several environments it is told in ``which`` (E,) an
    episode was, and its ``normalised`` return (E,) float64: 0 is the mean of random actions there, and 1 that of the
    demonstrator's.
    """

    returns: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray
    states: Sequence[Batch] = ()
    which: np.ndarray | None = None
    normalised: np.ndarray | None = None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What came of each episode, by the names that it is stored by."""
        found = {"returns": self.returns, "lengths": self.lengths, "truncated": self.truncated}
        further = {"environment": self.which, "normalised": self.normalised}
        return found | {name: array for name, array in further.items() if array is not None}


class Kept(Protocol):
    """Arrays of a shelf, as read-only memory maps."""

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """The arrays by name."""
        ...


class Shelf(Protocol):
    """Where arrays that could be computed anew are kept between commands; see ``kdrun.store``."""

    @property
    def folder(self) -> Path:
        """Where they lie, to be told."""
        ...

    def find(self, key: str) -> Kept | None:
        """What is kept by a key."""
        ...

    def make(
        self, key: str, forms: Mapping[str, tuple[tuple[int, ...], str]], about: Mapping[str, Any]
    ) -> AbstractContextManager[dict[str, np.ndarray]]:
        """Arrays of some shapes and types to be filled; raises ``StoreError`` where there is no room for them."""
        ...


class Dataset(Component, ABC):
    """Batches and labels of one data set.

    Making one reads no more than it must to know the ``spec`` (fixed sets: nothing); ``load`` reads the rest.
    Raises ``DataError`` where files are missing or broken.
    """

    family = "dataset"
    config: DatasetConfig
    spec: Spec
    plays: ClassVar[bool] = False
    """Whether its samples are states of an environment, in which what learns from it is to act."""

    def of(self, environment: str | None) -> Dataset:
        """The set of one environment, where there are several; itself where none is named."""
        return self

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that decides what the samples are, for the fingerprint: contents, not places."""

    @property
    def setting(self) -> str | None:
        """What is told of it beside its kind, in the protocol."""
        return None

    @property
    def at_hand(self) -> bool:
        """Whether ``load`` can do without a download."""
        return True

    @abstractmethod
    def load(
        self, device: torch.device, shelf: Shelf | None = None, say: Callable[[str], None] = lambda text: None
    ) -> None:
        """Read (or download) the samples, once; later calls do nothing.

        What takes long to read may be kept on the ``shelf``; ``say`` gets a sentence before anything takes long.
        """

    def show(self, views: Collection[str]) -> None:
        """Have batches give these views and the default one from now on; others need not be made."""

    @abstractmethod
    def steps(self, draw: Draw) -> int:
        """Batches an epoch; the same for all draws of one batch size, of students or of teachers.

        Known before loading.
        """

    def training_samples(self, draw: Draw) -> int:
        """How many a draw is made of at most, known before loading."""
        return self.steps(replace(draw, batch_size=1))

    @abstractmethod
    def batches(self, draw: Draw, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The training batches of an epoch from step ``first`` on, augmented, on the device."""

    @abstractmethod
    def queries(self, draw: Draw, number: int, batch_size: int) -> Iterator[Batch]:
        """A query for each training sample of a draw, in any order: the ``number``-th round that it asks."""

    @abstractmethod
    def split(self, name: Split, batch_size: int = 512, given: bool = False) -> Iterable[Batch]:
        """The samples of a split in their order, not augmented, with all labels; with ``given``, the students'.

        Theirs are those of the training set and then those of a transfer set, whose labels nobody knows: ``HIDDEN``.
        """

    @property
    def copied_views(self) -> Collection[str]:
        """The views that are the same wherever the default one is: those that a copy gives."""
        return (self.spec.default_view,)

    def copies(self, draw: Draw) -> int | None:
        """How many different passes over the training set the default view of a draw makes; None for no end of them.

        In epoch e, counted from 0, a draw that makes K of them sees the samples as they are in copy e % K.
        """
        return None

    def copy(self, number: int, batch_size: int, given: bool = False) -> Iterator[Batch]:
        """The training samples in their order as they look in a copy, counted from 0, with all labels.

        With ``given``, those that the students see. The same bits as in the batches of a draw that sees this copy.
        Only asked for where ``copies`` has said so.
        """
        raise AssertionError(f"{type(self).__name__} says that it has copies, and does not give them")

    @abstractmethod
    def labels(self, name: Split, given: bool = False) -> np.ndarray:
        """The labels of a split (N,) int64; with ``given``, as the students see them.

        Then they are those of the samples that the students see, ``HIDDEN`` where they may not see one.
        """

    @property
    def transfer_samples(self) -> int:
        """How many samples without labels, its last ones, a student sees beside those of the training set."""
        return 0

    @property
    def shared_by_transfer_set(self) -> Mapping[str, int]:
        """How many samples of the transfer set stand in each split, too; known once it is loaded."""
        return {}

    def places(self, given: bool = False) -> np.ndarray:
        """Where in the training set the samples stand that its teachers see, or its students (N,) int64.

        -1 for those of a transfer set.
        """
        return np.arange(len(self.labels("train", given)))

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, or their numbers where the data set has no names."""
        return [str(name) for name in getattr(self, "classes", range(self.spec.classes))]

    def units(self, view: str) -> Units:
        """What the numbers of a view are called and how they are measured; where nobody knows, as they are seen."""
        numbers = math.prod(self.spec.shapes[view])
        names = tuple(f"x{number}" for number in range(numbers))
        return Units(names, np.zeros(numbers), np.ones(numbers))

    @abstractmethod
    def test_hash(self) -> str:
        """SHA-256 of the test inputs and labels: two results with one hash were scored on the same data."""

    def train_hash(self, given: bool = False) -> str:
        """SHA-256 of the training inputs that the teachers see, or the students, whatever their files are called."""
        digest = hashlib.sha256()
        for batch in self.split("train", given=given):
            digest.update(batch.views[self.spec.default_view].cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def refresh(self, epoch: int, students: Sequence[Pupil]) -> None:
        """Called before each epoch: a set that grows with its students does so here, in their ``gathered``."""

    def gathered(self, draw: Draw, batch_size: int) -> Iterator[Batch]:
        """All that was gathered by the ``rollouts`` of a draw until now, in its order."""
        raise AssertionError(f"{type(self).__name__} gathers nothing")

    def shown_by(self, name: str, demonstrator: Callable[[], Predictor]) -> Dataset:
        """The set with the samples that a finished teacher, known by a name, shows; itself where none has to."""
        return self

    def play(
        self, policy: Predictor, split: Split, pause: Callable[[], None], episodes: range | None = None
    ) -> Played:
        """What a policy does in the episodes of a split, which are the same for all; where the set ``plays``.

        Of the validation split any ``episodes`` may be asked for, by their numbers. ``pause`` is called at each step.
        """
        raise AssertionError(f"{type(self).__name__} has no episodes")

    def film(self, policy: Predictor, say: Callable[[str], None] = lambda text: None) -> bytes | None:
        """A test episode of a policy as a GIF; None where nothing can be seen, and why where something might."""
        return None

    def scored_by(self) -> dict[str, Any]:
        """What a score of the test split stands on beside its samples, for the protocol."""
        return {}
