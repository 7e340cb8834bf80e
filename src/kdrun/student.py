"""What one student does in a step, and all that it has to remember between two."""

from __future__ import annotations

import copy
import operator
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from kdrun.contracts import Batch, Critic, Draw, Model, Outputs, Teacher
from kdrun.eager import take_step
from kdrun.losses.numerics import follow
from kdrun.models import Deployed, Frozen, Network
from kdrun.objective import Objective
from kdrun.optimization import (
    EVERYTHING,
    HIGHEST,
    Part,
    Sgd,
    Stage,
    Training,
    load_optimizer_tensors,
    optimizer_tensors,
    set_apart,
    stage_of,
)
from kdrun.randomness import derive, seed_device
from kdrun.store import Checkpoint

REPORT_EVERY = 50
"""Steps after which what lies on the device is read: terms for the log, and whether all was finite."""


STEPS_A_LOOK = 100
"""Steps for each term between two looks at its gradient, which cost about 1 % of the time then."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a learner stopped, and what may help; of a network, the first step whose term or gradient was not finite."""

    what: str
    cure: str
    epoch: int = 0
    step: int = 0

    def __str__(self) -> str:
        return self.what


Lesson = tuple[Batch, Mapping[str, Outputs]]
"""A batch, and what each teacher says of it."""
Gradients = list[Tensor | None]
"""Of each parameter, None where it got none."""


def _copied(function: Any) -> FunctionType:
    """The function with a code object of its own: torch compiles one code object a few times only, then never."""
    return FunctionType(function.__code__.replace(), function.__globals__)


@dataclass(frozen=True, slots=True)
class Plugs:
    """What a method changes of how a student learns, beside its terms.

    ``stages`` in their order; ``momentum_gap`` is what the momentum of the teachers' terms is larger, and that of the
    others smaller, than the optimizer's.
    """

    stages: Sequence[Stage] = ()
    momentum_gap: float | None = None


class Learner(ABC):
    """A model that is taught: what it learns from, and what became of it.

    ``teachers`` are what answers in the place of each teacher, ``seconds`` what it took so far, ``metrics`` its log, a
    line an epoch, ``extras`` further files to be stored with it; one with a ``failure`` learns no more.
    """

    def __init__(
        self,
        title: str,
        network: Network,
        objective: Objective,
        training: Training,
        draw: Draw,
        bf16: bool = False,
        plugs: Plugs = Plugs(),  # frozen
    ) -> None:
        self.title, self.network, self.objective, self.training = title, network, objective, training
        self.model, self.draw, self.bf16, self.plugs = network.model, draw, bf16, plugs
        self.teachers: dict[str, Teacher] = {}
        self.seconds = 0.0
        self.failure: Failure | None = None
        self.metrics: list[dict[str, Any]] = []
        self.extras: dict[str, bytes] = {}
        self.gathered: dict[str, Tensor] = {}
        """What its data set gathered for it, in the data set's own words; it learns from it as from samples."""

    @property
    def critic(self) -> Critic | None:
        """What tells how much reward it is to expect, where it learns from rewards."""
        return self.objective.critic

    def look(self, batch: Batch) -> Outputs:
        """What it says of a batch while it learns, and what its critic looks at; it learns nothing from it."""
        return self.network.dry(batch)

    @property
    def total_steps(self) -> int:
        """The steps that it takes in all."""
        return 1

    @abstractmethod
    def flush(self) -> None:
        """Read what was left on the device, above all the ``failure`` if there is one."""

    @abstractmethod
    def exported(self) -> Frozen:
        """What it is now: a network that predicts."""

    @abstractmethod
    def selected(self) -> Frozen:
        """What it has become: a network that is scored and stored."""


L = TypeVar("L", bound=Learner)


def lessons_of(
    learners: Sequence[L],
    batches: Mapping[Draw, Batch],
    ask: Callable[[Teacher, Batch], Outputs] = operator.call,
) -> dict[L, Lesson]:
    """Each learner's batch, and what its teachers say of it; no teacher is asked twice about one batch."""
    questions = dict.fromkeys((teacher, one.draw) for one in learners for teacher in one.teachers.values())
    said = {(teacher, draw): ask(teacher, batches[draw]) for teacher, draw in questions}
    return {
        one: (batches[one.draw], {name: said[teacher, one.draw] for name, teacher in one.teachers.items()})
        for one in learners
    }


class Student(Learner):
    """A network in training: objective, optimizer, average of the weights, log.

    ``position`` counts its steps. A step whose terms or gradients are not finite changes no weight, and no
    later step does; ``flush`` tells.
    """

    def __init__(
        self,
        title: str,
        network: Network,
        objective: Objective,
        training: Training,
        draw: Draw,
        steps: int,
        bf16: bool,
        plugs: Plugs = Plugs(),  # frozen
    ) -> None:
        super().__init__(title, network, objective, training, draw, bf16, plugs)
        self.steps_per_epoch, self.exportable = steps, _exportable(network.model, objective)
        self.parts = _parts(network.model, objective)
        self.parameters = [p for parameters in self.parts.values() for p in parameters]
        self.device = self.parameters[0].device
        self.optimizers = _optimizers(training, self.parameters, plugs.momentum_gap)
        if training.body_lr is not None:
            for optimizer in self.optimizers:
                set_apart(optimizer, self.parts["body"], training.body_lr)
        self.average = copy.deepcopy(self.exportable.state_dict()) if training.ema else None
        self.best: dict[str, Tensor] | None = None
        self.best_score = float("-inf")
        self.position = self.epochs_closed = 0
        self._sums = dict.fromkeys(objective.weights, 0.0)
        self._unread: list[Tensor] = []
        self._norms: Tensor | None = None
        self._shares: dict[str, float] | None = None
        self._epoch, self._stage = -1, EVERYTHING
        self._both = [False] * len(self.parameters)
        self._not_finite = torch.zeros((), device=self.device)
        self._one = torch.ones((), device=self.device)
        self.answer = (
            torch.compile(MethodType(_copied(Student._answer), self)) if training.compile else self._answer
        )
        """The weighted terms of a batch and of what the teachers say of it."""

    @property
    def total_steps(self) -> int:
        """The steps that it takes in all its epochs."""
        return self.steps_per_epoch * self.training.epochs

    def step(self, batch: Batch, taught: Mapping[str, Outputs]) -> None:
        """Learn from one batch and from what the teachers say of it."""
        began = time.perf_counter()
        self.begin_step()
        with self.arithmetic():
            terms = self.answer(batch, taught)
        self.look_at_gradients(terms, self.parts["body"] + self.parts["classifier"])
        self.learn(terms, self.gradients(terms))
        self.seconds += time.perf_counter() - began

    def arithmetic(self) -> AbstractContextManager[object]:
        """What its network and losses compute in."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def _answer(self, batch: Batch, taught: Mapping[str, Outputs]) -> dict[str, Tensor]:
        return self.terms(self.network(batch), (batch, taught))

    def terms(self, said: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        """The weighted terms of what the network said in a lesson, by name, in float32."""
        batch, taught = lesson
        return {name: term.float() for name, term in self.objective(said, taught, batch).items()}

    def learn(self, terms: Mapping[str, Tensor], gradients: list[Gradients]) -> None:
        """Take the step, unless a term or a gradient is not finite."""
        self.guard(terms, gradients)
        self._update(gradients)
        self.end_step()

    def begin_step(self) -> None:
        """Seed what the step draws; at the first step of an epoch, and after a resume, take up what it changes."""
        seed_device(derive(self.draw.seed, "step", self.position), self.device)
        self._enter(self.position // self.steps_per_epoch)

    def _enter(self, epoch: int) -> None:
        """Take up what an epoch changes."""
        if epoch == self._epoch:
            return
        self._epoch = epoch
        self._stage = stage_of(self.training, self.plugs.stages, epoch)
        self.objective.begin(epoch, self.training.epochs, self._stage)
        for part, parameters in self.parts.items():
            for parameter in parameters:
                parameter.requires_grad_(part in self._stage.train)
        self._take_modes()

    def _take_modes(self) -> None:
        """What learns is in training mode; what does not keeps its statistics, too."""
        self.model.train("body" in self._stage.train)
        self.model.get_submodule(self.model.head).train("classifier" in self._stage.train)
        self.objective.train("adapters" in self._stage.train)

    def gradients(self, values: Mapping[str, Tensor]) -> list[Gradients]:
        """The gradients of all terms together, or with two momenta of the others and of the teachers' terms."""
        if self.plugs.momentum_gap is None:
            sums = [list(values.values())]
        else:
            taught = self.objective.of_teachers
            sums = [[v for name, v in values.items() if (name in taught) == of] for of in (False, True)]
        totals = [sum(terms[1:], start=terms[0]) if terms else None for terms in sums]
        found = []
        for number, total in enumerate(totals, start=1):
            if total is not None and total.requires_grad:
                total.backward(retain_graph=number < len(totals))
            found.append([p.grad for p in self.parameters])
            for parameter in self.parameters:
                parameter.grad = None
        return found

    def look_at_gradients(self, terms: Mapping[str, Tensor], weights: Sequence[Tensor]) -> None:
        """Once an epoch, or less often where epochs are short, measure each term's gradient to the network's weights.

        A student that is compiled, or has one term only, is left alone: its terms' gradients cannot be told apart.
        """
        if len(terms) < 2 or self.training.compile or not self._looks():
            return
        learning = [weight for weight in weights if weight.requires_grad]
        norms = []
        for term in terms.values():
            found: Sequence[Tensor | None] = ()
            if learning and term.requires_grad:
                found = torch.autograd.grad(term, learning, retain_graph=True, allow_unused=True)
            given = [gradient for gradient in found if gradient is not None]
            norms.append(torch.nn.utils.get_total_norm(given) if given else term.new_zeros(()))
        self._norms = torch.stack(norms)

    def _looks(self) -> bool:
        """Whether this is the first step of an epoch by which enough steps have passed since the last look."""
        epoch, step = divmod(self.position, self.steps_per_epoch)
        apart = STEPS_A_LOOK * len(self.objective.named)
        passed = [number * self.steps_per_epoch // apart for number in (epoch - 1, epoch)]
        return step == 0 and (epoch == 0 or passed[0] < passed[1])

    def guard(self, terms: Mapping[str, Tensor], gradients: list[Gradients]) -> None:
        """Freeze on the first value that is not finite, without waiting for the device.

        The optimizers skip a step where ``found_inf`` is set, as they do under a gradient scaler.
        """
        given = [gradient for part in gradients for gradient in part if gradient is not None]
        values = torch.stack(list(terms.values())).detach()
        torch._amp_foreach_non_finite_check_and_unscale_([values, *given], self._not_finite, self._one)
        self._unread.append(torch.cat([values, self._not_finite.view(1)]))

    def _update(self, gradients: list[Gradients]) -> None:
        """A step of every optimizer that has gradients."""
        if self.training.clip is not None:
            clip(gradients, self.training.clip)
        if self.plugs.momentum_gap is not None:
            gradients = self._apart(*gradients)
        for optimizer, part in zip(self.optimizers, gradients, strict=True):
            self.set_rate(optimizer)
            # torch's own gradient scaler hands these over in the same way, undeclared.
            optimizer.grad_scale = None  # type: ignore[attr-defined]
            optimizer.found_inf = self._not_finite  # type: ignore[attr-defined]
            for parameter, gradient in zip(self.parameters, part, strict=True):
                parameter.grad = gradient
            take_step(optimizer)

    def set_rate(self, optimizer: torch.optim.Optimizer) -> None:
        """Give an optimizer's groups their learning rates of this step."""
        for group in optimizer.param_groups:
            highest = group.get(HIGHEST)
            group["lr"] = self.training.learning_rate(self.position, self.steps_per_epoch, highest)

    def end_step(self) -> None:
        """What follows the update of the weights."""
        if self.average is not None:
            assert self.training.ema is not None
            follow(self.average, self.exportable.state_dict(), self.training.ema)
        self.position += 1
        self.objective.end_step(self.position)

    def _apart(self, others: Gradients, taught: Gradients) -> list[Gradients]:
        """The gradients for ``_optimizers``: of a weight that ever had both kinds, and of one that had only one.

        Where a kind goes missing (its terms have ended) it is a gradient of 0, so that its momentum runs on.
        """
        pairs = list(zip(others, taught, strict=True))
        self._both = [
            known or (a is not None and b is not None)
            for known, (a, b) in zip(self._both, pairs, strict=True)
        ]

        def side(own: Tensor | None, other: Tensor | None) -> Tensor | None:
            return torch.zeros_like(other) if own is None and other is not None else own

        return [
            [side(a, b) if both else None for both, (a, b) in zip(self._both, pairs, strict=True)],
            [side(b, a) if both else None for both, (a, b) in zip(self._both, pairs, strict=True)],
            [None if both else b if a is None else a for both, (a, b) in zip(self._both, pairs, strict=True)],
        ]

    def flush(self) -> None:
        """Read what the last steps left on the device: the terms' sums, and the ``failure`` if there is one."""
        if self._norms is not None:
            norms = self._norms.tolist()
            total = sum(norms)
            known = 0 < total < float("inf")
            self._shares = (
                {name: n / total for name, n in zip(self._sums, norms, strict=True)} if known else None
            )
            self._norms = None
        if not self._unread or self.failure is not None:
            return
        first = self.position - len(self._unread)
        rows = torch.stack(self._unread).tolist()
        self._unread = []
        for number, (*values, bad) in enumerate(rows, start=first):
            if bad:
                names = [n for n, v in zip(self._sums, values, strict=True) if not np.isfinite(v)]
                epoch, step = divmod(number, self.steps_per_epoch)
                what = f"the term '{names[0]}'" if names else "the gradient"
                told = f"{what} is not finite in epoch {epoch + 1}, step {step + 1} of it"
                self.failure = Failure(told, "a smaller learning rate or weight may help", epoch, step)
                return
            for name, value in zip(self._sums, values, strict=True):
                self._sums[name] += value

    def turns(self) -> list[int]:
        """The epochs, counted from 0, in which other terms or parts begin to count; the first is 0."""
        epochs = self.training.epochs
        turns = [0]
        for epoch in range(1, epochs):
            states = [
                (
                    stage_of(self.training, self.plugs.stages, e),
                    [bool(term.config.weight_in(e, epochs)) for term in self.objective.named.values()],
                )
                for e in (epoch - 1, epoch)
            ]
            if states[0] != states[1]:
                turns.append(epoch)
        return turns

    def go_to(self, epoch: int) -> None:
        """Put it at a step of an epoch, counted from 0, that is like most of them: its second, if there is one."""
        self.position = epoch * self.steps_per_epoch + min(1, self.steps_per_epoch - 1)

    def rehearsed(self) -> dict[str, float]:
        """The weighted terms of the last step, those that count; its marks in the log are wiped out."""
        self.flush()
        values = {name: self._sums[name] for name, weight in self.objective.weights.items() if weight}
        self._sums, self._shares = dict.fromkeys(self._sums, 0.0), None
        return values

    def close_epoch(self, validation: dict[str, float] | None, metric: str) -> None:
        """Write the epoch's line of the log, and keep the weights if they are the best on validation."""
        self.flush()
        self._enter(self.epochs_closed)  # where it was stopped after the epoch's last step
        weights = self.objective.weights
        terms = {
            name: {
                "value": total / self.steps_per_epoch / weights[name] if weights[name] else None,
                "weight": weights[name],
                "gradient_share": self._shares[name] if self._shares else None,
            }
            for name, total in self._sums.items()
        }
        now = self.position - 1, self.steps_per_epoch
        line: dict[str, Any] = {"epoch": self.epochs_closed, "step": self.position}
        line["lr"] = self.training.learning_rate(*now)
        if self.training.frozen_epochs or self.training.body_lr is not None:
            learns = "body" in self._stage.train
            line["body_lr"] = self.training.learning_rate(*now, self.training.body_lr) if learns else 0.0
        if self.draw.rollouts is not None and self.draw.rollouts.source == "self":
            line["environment_steps"] = (self.epochs_closed + 1) * self.draw.rollouts.states
        line["terms"] = terms
        self.metrics.append(line | {"validation": validation})
        self._sums, self._shares = dict.fromkeys(self._sums, 0.0), None
        self.epochs_closed += 1
        if (
            self.training.selection == "best-on-validation"
            and validation
            and validation[metric] > self.best_score
        ):
            self.best, self.best_score = copy.deepcopy(self._current()), validation[metric]

    def _current(self) -> dict[str, Tensor]:
        return self.average if self.average is not None else self.exportable.state_dict()

    def exported(self) -> Frozen:
        """A network with the weights that count now: the average's if there is one; no adapter but what predicts."""
        return self.network.copied(self.exportable, self._current())

    def selected(self) -> Frozen:
        """A network with the weights that ``selection`` chose."""
        return self.network.copied(self.exportable, self.best if self.best is not None else self._current())

    # ------------------------------------------------------------------------------------ checkpoints

    def checkpoint(self, resolved: dict[str, Any]) -> Checkpoint:
        """All that the next steps depend on."""
        self.flush()
        parts = {
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": optimizer_tensors(self.optimizers),
            "average": self.average or {},
            "best": self.best or {},
            "gathered": self.gathered,
        }
        arrays = {
            f"{part}/{name}": tensor.detach().cpu().contiguous().numpy()
            for part, tensors in parts.items()
            for name, tensor in tensors.items()
        }
        state = {
            "epochs_closed": self.epochs_closed,
            "best_score": self.best_score if self.best is not None else None,
            "seconds": self.seconds,
            "metrics": self.metrics,
            "sums": self._sums,
            "shares": self._shares,
            "both_gradients": self._both,
            "resolved": resolved,
            "threads": torch.get_num_threads(),
        }
        return Checkpoint(self.position, arrays, state)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint was made; ``LookupError``, ``ValueError`` or ``RuntimeError`` where it cannot."""
        parts: dict[str, dict[str, Tensor]] = {}
        for key, array in checkpoint.arrays.items():
            part, name = key.split("/", 1)
            parts.setdefault(part, {})[name] = torch.from_numpy(array.copy()).to(self.device)
        self.model.load_state_dict(parts["model"])
        self.objective.load_state_dict(parts.get("objective", {}))
        load_optimizer_tensors(self.optimizers, parts.get("optimizer", {}))
        self.average = parts.get("average")
        self.best = parts.get("best")
        self.gathered = parts.get("gathered", {})
        state = checkpoint.state
        if [*state["sums"]] != [*self._sums] or len(state["both_gradients"]) != len(self._both):
            raise ValueError("it is of other losses")
        self.best_score = float("-inf") if state["best_score"] is None else state["best_score"]
        self.position, self.epochs_closed = checkpoint.step, state["epochs_closed"]
        self.seconds, self.metrics, self._sums = state["seconds"], state["metrics"], state["sums"]
        self._shares = state["shares"]
        self._both = state["both_gradients"]


def _exportable(model: Model, objective: Objective) -> Model:
    """The model that is scored and stored: the student's own, or one whose logits come from a loss's parts."""
    if objective.predictor is None:
        return model
    return Deployed(model, *objective.predictor)


def _parts(model: Model, objective: Objective) -> dict[Part, list[Tensor]]:
    """All that can learn, by what a stage calls it."""
    head = {id(p) for p in model.get_submodule(model.head).parameters()}
    own = [p for p in model.parameters() if p.requires_grad]
    return {
        "body": [p for p in own if id(p) not in head],
        "classifier": [p for p in own if id(p) in head],
        "adapters": [p for p in objective.parameters() if p.requires_grad],
    }


def _optimizers(
    training: Training, parameters: Sequence[Tensor], momentum_gap: float | None
) -> list[torch.optim.Optimizer]:
    """The optimizer, or with two momenta three: of the others' terms, of the teachers', and of one kind alone.

    Two steps of SGD after each other are one with two momenta: Zhao, Cui, Song, Liang, "DOT: A
    Distillation-Oriented Trainer", 2023. The weight decay is with the others' terms.
    """
    if momentum_gap is None:
        return [training.optimizer.build(parameters)]
    sgd = training.optimizer
    assert isinstance(sgd, Sgd), "the config sees to it"
    slow, fast = sgd.momentum - momentum_gap, sgd.momentum + momentum_gap
    recipes: tuple[dict[str, float], ...] = ({"momentum": slow}, {"momentum": fast, "weight_decay": 0.0}, {})
    return [sgd.model_copy(update=recipe).build(parameters) for recipe in recipes]


def clip(gradients: list[Gradients], most: float) -> None:
    """Scale all gradients, in place, so that the norm of their sum is at most ``most``."""
    sums = [[g for g in of_one if g is not None] for of_one in zip(*gradients, strict=True)]
    given = [g for of_one in sums for g in of_one]
    if given:
        norm = torch.nn.utils.get_total_norm([sum(g[1:], start=g[0]) for g in sums if g])
        torch._foreach_mul_(given, (most / (norm + 1e-6)).clamp(max=1.0))
