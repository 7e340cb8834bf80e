"""How a model is trained: the recipe's schema, and the optimizer and learning rate that follow from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from kdrun.contracts import Schema, kind_alone


class Sgd(Schema):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"]
    lr: float = Field(default=0.05, gt=0)
    """the learning rate at its highest"""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    nesterov: bool = False

    def build(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimizer of these parameters."""
        return torch.optim.SGD(
            parameters, self.lr, self.momentum, 0, self.weight_decay, self.nesterov, fused=True
        )


class Adam(Schema):
    """Adam (Kingma and Ba, 2015)."""

    kind: Literal["adam"]
    lr: float = Field(default=1e-3, gt=0)
    """the learning rate at its highest"""
    betas: list[float] = Field(default=[0.9, 0.999], min_length=2, max_length=2)
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


class Constant(Schema):
    """The learning rate stays as it is."""

    kind: Literal["constant"]

    def factor(self, epoch: float, epochs: int) -> float:
        """The learning rate's factor at a (fractional) epoch."""
        return 1.0


class Cosine(Schema):
    """Half a cosine from the full learning rate down to ``final`` of it, step by step."""

    kind: Literal["cosine"]
    final: float = Field(default=0.0, ge=0, le=1)
    """the share of the learning rate that is left at the end"""

    def factor(self, epoch: float, epochs: int) -> float:
        """The learning rate's factor at a (fractional) epoch."""
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(epoch / epochs, 1.0)))


class Step(Schema):
    """The learning rate is multiplied by ``gamma`` after each of the ``milestones``."""

    kind: Literal["step"]
    milestones: list[Annotated[int, Field(ge=1)]]
    """epochs after which it falls"""
    gamma: float = Field(default=0.1, gt=0, le=1)

    def factor(self, epoch: float, epochs: int) -> float:
        """The learning rate's factor at a (fractional) epoch."""
        return self.gamma ** sum(epoch >= milestone for milestone in self.milestones)


AnyOptimizer = Annotated[Sgd | Adam | AdamW, Field(discriminator="kind"), BeforeValidator(kind_alone)]
AnySchedule = Annotated[Constant | Cosine | Step, Field(discriminator="kind"), BeforeValidator(kind_alone)]


class Training(Schema):
    """How a model is trained; a model's own ``training`` changes single keys of the experiment's."""

    epochs: int = Field(default=30, ge=1)
    """passes over the training set"""
    batch_size: int = Field(default=128, ge=1)
    """samples a step"""
    optimizer: AnyOptimizer = AdamW(kind="adamw")
    """sgd, adam or adamw"""
    schedule: AnySchedule = Cosine(kind="cosine")
    """constant, cosine or step"""
    warmup: float = Field(default=0.0, ge=0)
    """epochs over which the learning rate rises from zero"""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """of every `ce` term that names none of its own"""
    mixup: float = Field(default=0.0, ge=0)
    """α of mixup's Beta distribution; 0 for none"""
    clip: float | None = Field(default=None, gt=0)
    """largest norm of the gradient"""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """decay of an average of the weights, which then is what gets scored and exported"""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """bf16 trains under autocast; auto takes bf16 on a GPU that has it, and fp32 elsewhere"""
    compile: bool = False
    """torch.compile the student"""
    selection: Literal["last", "best-on-validation"] = "last"
    """the weights that are scored on the test set, once, at the end"""

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of one step, counted from 0."""
        epoch = step / steps_per_epoch
        rising = min((step + 1) / (self.warmup * steps_per_epoch), 1.0) if self.warmup else 1.0
        return self.optimizer.lr * rising * self.schedule.factor(epoch, self.epochs)


def merged(base: Any, changes: Any) -> Any:
    """``base`` with the keys that ``changes`` sets; parts of another kind are replaced whole."""
    if changes is None:
        return base
    update = {}
    for name in changes.model_fields_set:
        new, old = getattr(changes, name), getattr(base, name)
        update[name] = merged(old, new) if isinstance(new, Schema) and type(new) is type(old) else new
    return base.model_copy(update=update)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: ``"3.exp_avg"`` belongs to the fourth parameter."""
    return {
        f"{number}.{key}": value
        for number, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if value is not None
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
