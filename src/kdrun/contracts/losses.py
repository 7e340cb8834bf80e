"""What a loss is, and what it is given when it is built."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from kdrun.contracts.exchanged import Batch, Combine, Component, Outputs
from kdrun.contracts.models import Model, ModelConfig
from kdrun.schedules import AnyWeightSchedule
from kdrun.schema import Schema, as_list, kind_alone
from kdrun.taps import LayerTable


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
