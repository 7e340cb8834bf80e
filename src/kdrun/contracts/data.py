"""What a data set is, how batches are drawn from it, and what it knows of those who learn from it."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

import numpy as np
import torch
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from torch import Tensor

from kdrun.contracts.exchanged import Batch, Component, Critic, Outputs, Predictor, Spec, Split, Units
from kdrun.schema import Schema
from kdrun.statistics.scores import Metric


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
