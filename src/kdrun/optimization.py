"""How a model is trained: the recipe's schema, and the optimizer and learning rate that follow from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from kdrun.contracts import Queries, Rollouts
from kdrun.schedules import AnySchedule, Cosine
from kdrun.schema import Schema, kind_alone


class Sgd(Schema):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"]
    lr: float = Field(default=0.05, gt=0)
    """the learning rate at its highest"""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    nesterov: bool = False

    @model_validator(mode="after")
    def _momentum_for_nesterov(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("'nesterov' needs a momentum above 0")
        return self

    def build(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimizer of these parameters."""
        parameters = list(parameters)
        optimizer = torch.optim.SGD(
            parameters, self.lr, self.momentum, 0, self.weight_decay, self.nesterov, fused=True
        )
        if self.momentum:
            # torch would begin with the first gradient, which is the same, but fails where some come later.
            for parameter in parameters:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer


class Adam(Schema):
    """Adam (Kingma and Ba, 2015)."""

    kind: Literal["adam"]
    lr: float = Field(default=1e-3, gt=0)
    """the learning rate at its highest"""
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(default=[0.9, 0.999], min_length=2, max_length=2)
    """decay of the averages of the gradient and of its square"""
    weight_decay: float = Field(default=0.0, ge=0)

    def build(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimizer of these parameters."""
        first, second = self.betas
        return torch.optim.Adam(
            parameters, self.lr, (first, second), weight_decay=self.weight_decay, fused=True
        )


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    kind: Literal["adamw"]  # type: ignore[assignment]  # a name of its own, not one more of Adam's
    weight_decay: float = Field(default=0.01, ge=0)

    def build(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimizer of these parameters."""
        first, second = self.betas
        return torch.optim.AdamW(
            parameters, self.lr, (first, second), weight_decay=self.weight_decay, fused=True
        )


AnyOptimizer = Annotated[Sgd | Adam | AdamW, Field(discriminator="kind"), BeforeValidator(kind_alone)]


class Recipe(Schema):
    """How a model learns: what a method may have of its own without leaving the protocol of the others."""

    optimizer: AnyOptimizer = AdamW(kind="adamw")
    """sgd, adam or adamw"""
    schedule: AnySchedule = Cosine(kind="cosine")
    """constant, linear, cosine or step"""
    warmup: float = Field(default=0.0, ge=0)
    """epochs over which the learning rate rises from zero"""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """of every `ce` term that names none of its own"""
    mixup: float = Field(default=0.0, ge=0)
    """α of mixup's Beta distribution; 0 for none. Teachers see the mixed samples, too"""
    cutmix: float = Field(default=0.0, ge=0)
    """α of cutmix's Beta distribution; 0 for none; with both, each batch is mixed in one of the two ways"""
    queries: Queries | None = None
    """further samples, of which only the teachers say what they are: training samples with noise, or mixed"""
    rollouts: Rollouts | None = None
    """of a student that is to act: states that are gathered while it learns, its own or its teacher's"""
    labelled_share: float | None = Field(default=None, gt=0, lt=1)
    """where few samples have a label that the students see: their share in each batch of a student that learns from the
    others, too; as they come where nothing is said"""
    clip: float | None = Field(default=None, gt=0)
    """largest norm of the gradient"""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """decay of an average of the weights, which then is what gets scored and exported"""
    frozen_epochs: int = Field(default=0, ge=0)
    """of a model that starts from weights: its first epochs, in which its classifier and the losses' adapters learn,
    and its body stays as it is, statistics and all; as many as there are epochs for a linear probe"""
    body_lr: float | None = Field(default=None, gt=0)
    """the learning rate of the body, all but the classifier, at its highest; schedule and warm-up are the same. That of
    the optimizer where nothing is said"""


class Training(Recipe):
    """How a model is trained; a model's own ``training`` changes single keys of the experiment's."""

    epochs: int = Field(default=30, ge=1, le=100_000)
    """passes over the training set"""
    batch_size: int = Field(default=128, ge=1)
    """samples a step"""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """bf16 trains under autocast; auto takes it for pictures on a GPU or CPU that has it, and fp32 elsewhere"""
    cache: bool = True
    """where each pass shows a teacher the same views, ask it once and look its outputs up"""
    compile: bool = False
    """torch.compile the student"""
    stack: bool = False
    """run small students of one architecture as one, over methods and seeds: equal up to rounding, not to the bit"""
    selection: Literal["last", "best-on-validation"] = "last"
    """the weights that are scored on the test set, once, at the end"""

    def learning_rate(self, step: int, steps_per_epoch: int, highest: float | None = None) -> float:
        """The learning rate of one step, counted from 0, that is at most ``highest``, or what the optimizer says."""
        epoch = step / steps_per_epoch
        rising = min((step + 1) / (self.warmup * steps_per_epoch), 1.0) if self.warmup else 1.0
        highest = self.optimizer.lr if highest is None else highest
        return highest * rising * self.schedule.factor(epoch, self.epochs)


SEEN_BY_FITTED = ("epochs", "batch_size", "label_smoothing", "mixup", "cutmix", "queries", "rollouts")
"""The keys that decide what a model learns that is fitted at once: which samples it is shown."""

Part = Literal["adapters", "body", "classifier"]


class Stage(Schema):
    """A stretch of a training in which only some terms count and only some weights learn.

    The last stage may say no length; it then takes all epochs that are left.
    """

    epochs: int | None = Field(default=None, ge=1)
    """how many epochs it takes"""
    share: float | None = Field(default=None, gt=0, lt=1)
    """how many, as a share of all epochs; at least one"""
    losses: list[str] | None = Field(default=None, min_length=1)
    """the terms that count, by name; all where nothing is said"""
    train: list[Part] = Field(default=["adapters", "body", "classifier"], min_length=1)
    """what learns: the losses' adapters, the student's body, its classifier"""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.share is not None:
            raise ValueError("say either 'epochs' or 'share'")
        return self

    @property
    def pretrains(self) -> bool:
        """Whether the adapters learn alone."""
        return self.train == ["adapters"]

    def length(self, epochs: int) -> int | None:
        """Its epochs, of so many in all; None for those that are left."""
        return max(1, round(self.share * epochs)) if self.share is not None else self.epochs


EVERYTHING = Stage()
HIGHEST = "initial_lr"
"""Where torch's own schedules keep a group's learning rate; here only of groups that have one of their own."""


def stage_at(stages: Sequence[Stage], epoch: int, epochs: int) -> Stage:
    """The stage of an epoch, counted from 0, of so many; after the last one everything counts and learns."""
    for stage in stages:
        length = stage.length(epochs)
        if length is None or epoch < length:
            return stage
        epoch -= length
    return EVERYTHING


def stage_of(training: Training, stages: Sequence[Stage], epoch: int) -> Stage:
    """The stage of an epoch of a training, counted from 0; while the body is frozen it learns in none."""
    stage = stage_at(stages, epoch, training.epochs)
    if epoch >= training.frozen_epochs:
        return stage
    return stage.model_copy(update={"train": [part for part in stage.train if part != "body"]})


def set_apart(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], highest: float) -> None:
    """Make the first parameters of an optimizer a group of their own, whose learning rate is ``highest`` at most."""
    (group,) = optimizer.param_groups
    own, others = (group["params"][part] for part in (slice(len(parameters)), slice(len(parameters), None)))
    optimizer.param_groups[:] = [group | {"params": own, HIGHEST: highest}, group | {"params": others}]


def merged(base: Any, changes: Any) -> Any:
    """``base`` with the keys that ``changes`` sets; parts of another kind are replaced whole."""
    if changes is None:
        return base
    update = {}
    for name in changes.model_fields_set:
        new, old = getattr(changes, name), getattr(base, name)
        update[name] = merged(old, new) if isinstance(new, Schema) and type(new) is type(old) else new
    return base.model_copy(update=update)


def optimizer_tensors(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Their state as named tensors: ``"0.3.exp_avg"`` belongs to the first one's fourth parameter."""
    return {
        f"{place}.{number}.{key}": value
        for place, optimizer in enumerate(optimizers)
        for number, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if value is not None
    }


def load_optimizer_tensors(optimizers: Sequence[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave."""
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for name, value in tensors.items():
        place, number, key = name.split(".", 2)
        states[int(place)].setdefault(int(number), {})[key] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    lay_alike(optimizers)


def lay_alike(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Lay out the optimizers' state in memory as the parameters are: fused steps go through both side by side."""
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                    raise ValueError(f"{key} of {[*value.shape]} for a parameter of {[*parameter.shape]}")
                if isinstance(value, Tensor) and value.dim():
                    state[key] = torch.empty_like(parameter).copy_(value)
