"""What a student is trained to do: student, teachers and batch → weighted terms by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun import registry
from kdrun.contracts import Batch, Context, Loss, LossConfig, Outputs
from kdrun.models import Frozen, Network
from kdrun.randomness import derive


@dataclass(frozen=True)
class Surroundings:
    """What the losses of one student are built from.

    ``batch`` is one dry batch, with ``labels`` as the student sees them, like the training set's.
    """

    student: Network
    teachers: Mapping[str, Frozen]
    batch: Batch
    samples: int
    classes: int
    labels: Tensor
    seed: int
    label_smoothing: float = 0.0


class Term(nn.Module):
    """One weighted term: a loss for each of its teachers, or one loss on what they say together."""

    def __init__(self, config: LossConfig, surroundings: Surroundings) -> None:
        super().__init__()
        self.label, self.weight, self.combine = config.label, config.weight, config.combine
        self.teachers = config.teachers
        loss_class = registry.LOSSES[config.kind]
        together = len(self.teachers) > 1 and loss_class.on_logits
        self.together = together
        self.temperature = loss_class(config).temperature
        alike = [self.teachers] if together or not self.teachers else [[name] for name in self.teachers]
        self.losses = nn.ModuleList(
            _built(loss_class(config), names, place, config, surroundings)
            for place, names in enumerate(alike)
        )

    def forward(self, student: Outputs, taught: Mapping[str, Outputs], batch: Batch) -> Tensor:
        """The weighted term, a scalar; the mean over teachers where each has its own loss."""
        said: list[Outputs | None] = [taught[name] for name in self.teachers] or [None]
        if self.together:
            said = [combined([taught[name] for name in self.teachers], self.combine, self.temperature)]
        values = [loss(student, outputs, batch) for loss, outputs in zip(self.losses, said, strict=True)]
        return self.weight * (values[0] if len(values) == 1 else torch.stack(values).mean())


def combined(said: Sequence[Outputs], how: str, temperature: float) -> Outputs:
    """Several teachers as one: logits (B, C) whose softmax at ``temperature`` is their mean probability.

    ``mean-logits`` averages the logits themselves.
    """
    logits = torch.stack([outputs.logits for outputs in said])
    if how == "mean-logits":
        return Outputs(logits.mean(dim=0))
    log_mean = F.log_softmax(logits / temperature, dim=-1).logsumexp(dim=0) - math.log(len(said))
    return Outputs(temperature * log_mean)


def _built(loss: Loss, names: list[str], place: int, config: LossConfig, around: Surroundings) -> Loss:
    """A loss with its layers tapped and its adapters made; raises ``Mismatch``.

    ``place`` is its place among the term's losses: adapters of one term start apart, whatever teachers are called.
    """
    teacher = around.teachers[names[0]] if names else None
    student_table = around.student.describe(around.batch, "the student")
    teacher_table = teacher.describe(around.batch, f"the teacher '{names[0]}'") if teacher else None
    taps = loss.taps(student_table, teacher_table)
    around.student.tap(taps.student)
    if teacher is not None:
        teacher.tap(taps.teacher)
    with torch.no_grad():
        seen = around.student.dry(around.batch)
        said = teacher(around.batch) if teacher else None
    context = Context(
        batch=around.batch,
        student=seen,
        teacher=said,
        samples=around.samples,
        classes=around.classes,
        labels=around.labels,
        teacher_state=teacher.model.state_dict() if teacher else {},
        teacher_head=teacher.model.head if teacher else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(around.seed, "adapters", config.label, place))
        loss.build(context)
    return loss.to(around.batch.labels.device)


class Objective(nn.Module):
    """The sum that a student is trained on, term by term."""

    def __init__(self, configs: Sequence[LossConfig], surroundings: Surroundings) -> None:
        super().__init__()
        terms = [
            Term(_with_smoothing(config, surroundings.label_smoothing), surroundings) for config in configs
        ]
        self.terms = nn.ModuleList(terms)
        self.weights = {term.label: term.weight for term in terms}

    def forward(self, student: Outputs, taught: Mapping[str, Outputs], batch: Batch) -> dict[str, Tensor]:
        """The weighted terms by name, unsummed."""
        return {term.label: term(student, taught, batch) for term in self.terms}  # type: ignore[misc]  # a ModuleList forgets what it holds


def _with_smoothing(config: LossConfig, training: float) -> LossConfig:
    """The training's label smoothing, where a label term says nothing of its own."""
    own: Any = getattr(config, "label_smoothing", 0.0)
    return config if own is not None else config.model_copy(update={"label_smoothing": training})
