"""What is handed from one to another: batches, outputs, what is known of both, and who may ask whom.

Shapes are written with B (batch), C (classes), and for features either (B, D) vectors, (B, D, H, W) maps or
(B, T, D) token sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from kdrun import registry
from kdrun.schema import Schema

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
