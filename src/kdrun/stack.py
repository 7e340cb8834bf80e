"""Students of one architecture that take their steps together: one batched pass through all their networks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from kdrun import registry
from kdrun.contracts import Batch, Outputs
from kdrun.eager import take_step
from kdrun.errors import TrainingError
from kdrun.losses.base import OnLogits
from kdrun.losses.labels import LabelLoss
from kdrun.losses.rewards import RewardLoss
from kdrun.losses.selves import PastSelf
from kdrun.models import Network
from kdrun.student import Gradients, Lesson, Student, clip


class Team:
    """Students that take a step together: one by itself, or several stacked.

    Stacked, they keep their own losses, optimizers, averages and logs, and a failure of one is its own; their weights
    become rows of common tensors. What each learns equals what it learns by itself up to rounding.
    """

    def __init__(self, members: Sequence[Student]) -> None:
        self.members = members
        self.stack = Stack(members) if len(members) > 1 else None

    def step(self, lessons: Sequence[Lesson]) -> None:
        """Learn, each member from its own lesson."""
        if self.stack is None:
            self.members[0].step(*lessons[0])
        else:
            self.stack.step(lessons)


def companies(students: Sequence[Student]) -> list[list[Student]]:
    """Students sorted into those that can be stacked with others, and each of the rest alone."""
    found: dict[Any, list[Student]] = {}
    for student in students:
        stacked = student.training.stack and why_not(student) is None
        found.setdefault(likeness(student) if stacked else student, []).append(student)
    return [*found.values()]


def teams(students: Sequence[Student]) -> list[Team]:
    """A team of each company."""
    return [Team(company) for company in companies(students)]


def why_not(student: Student) -> str | None:
    """What keeps a student from being stacked, or None."""
    modules = list(student.model.modules())
    if student.plugs.stages or student.plugs.momentum_gap is not None:
        return "its method has stages, or two momenta"
    if student.training.compile:
        return "it is compiled"
    if student.training.frozen_epochs or student.training.body_lr is not None:
        return "its body is frozen at first, or has a learning rate of its own"
    if registry.MODELS[student.model.made_from.kind].compresses:
        return "it is made of a finished student"
    if any(_drops(module) for module in modules):
        return "dropout draws anew for each"
    if any(isinstance(module, nn.RNNBase) for module in modules):
        return "recurrent networks cannot be batched"
    if student.network.further_views:
        return "it looks at a second view"
    if not all(parameter.requires_grad for parameter in student.model.parameters()):
        return "some of its weights do not learn"
    if not _always_on_logits(student):
        return "in some step no term looks at its logits, so that not all of its weights learn"
    if student.device.type == "cpu" and any(isinstance(module, nn.Conv2d) for module in modules):
        return "a CPU is slower at convolutions of several networks at once"
    return None


def _drops(module: nn.Module) -> bool:
    """Whether a layer drops units, or timm's or torchvision's whole branches, by chance."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return bool(module.p)
    return type(module).__name__ in ("DropPath", "StochasticDepth")


def _always_on_logits(student: Student) -> bool:
    """Whether every step reaches all weights, by terms of families that look at the student's logits, or its heads'.

    One that is not reached gets no gradient; in a stack it would get one of 0, and with it decay and momentum.
    """
    epochs = student.training.epochs
    terms = student.objective.named.values()
    reached = {
        term.head
        for term in terms
        if isinstance(term.losses[0], LabelLoss | PastSelf | OnLogits | RewardLoss)
        and term.config.mask is None
        and all(term.config.weight_in(epoch, epochs) for epoch in range(epochs))
    }
    heads = {term.head for term in terms} - {None} or {None}
    return None in reached or heads <= reached


def likeness(student: Student) -> Any:
    """What students that are stacked have in common."""
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in student.model.state_dict().items())
    architecture = student.model.made_from.model_dump_json(exclude={"initial_weights", "pretrained"})
    seen = student.network.view, student.model.lens
    return architecture, shapes, student.training.model_dump_json(), student.bf16, *seen


class _Row:
    """A member's own weights, losses' adapters and optimizer's memory, of a stack where it has one row."""

    def __init__(self, member: Student) -> None:
        self.member = member
        self.weights = dict(member.model.named_parameters())
        self.buffers = dict(member.model.named_buffers())
        self.adapters = member.parts["adapters"]
        self.memory = member.optimizers[0].state
        names = {id(parameter): name for name, parameter in self.weights.items()}
        self.names = [names.get(id(parameter)) for parameter in member.parameters]


class Stack:
    """The networks of several students as one, and their common step.

    The members' weights and what their optimizers remember of them are rows of the common ones.
    """

    def __init__(self, members: Sequence[Student]) -> None:
        self._rows, first = [_Row(member) for member in members], members[0]
        network = first.network.copied(first.model, first.model.state_dict())
        network.model.train()
        for member in members:
            network.tap(member.network.layers)
        for module in network.model.modules():
            if type(module) is nn.Linear:
                module.__class__ = _Linear
        self._body, self._first = _Looking(network), first
        self._weights = {
            name: _common([row.weights[name] for row in self._rows]).requires_grad_()
            for name in self._rows[0].weights
        }
        self._buffers = {
            name: _common([row.buffers[name] for row in self._rows]) for name in self._rows[0].buffers
        }
        adapters = [adapter for row in self._rows for adapter in row.adapters]
        self._optimizer = first.training.optimizer.build([*self._weights.values(), *adapters])
        self._shared = False
        self._remember()

    def _remember(self) -> None:
        """Have the common optimizer remember what the members' do."""
        for name, weight in self._weights.items():
            own = [row.memory[row.weights[name]] for row in self._rows]
            self._optimizer.state[weight] = {
                key: value if key == "step" else torch.stack([one[key] for one in own])
                for key, value in own[0].items()
            }
        for row in self._rows:
            self._optimizer.state.update({p: row.memory[p] for p in row.adapters})

    def _share(self) -> None:
        """Have the members' optimizers remember what the common one does, in the same memory, for checkpoints."""
        for place, row in enumerate(self._rows):
            for name, weight in self._weights.items():
                row.memory[row.weights[name]] = {
                    key: value if key == "step" else value[place]
                    for key, value in self._optimizer.state[weight].items()
                }
            row.memory.update({p: self._optimizer.state[p] for p in row.adapters})

    def step(self, lessons: Sequence[Lesson]) -> None:
        """Learn, each member from its own lesson."""
        began = time.perf_counter()
        with self._first.arithmetic():
            said = self.look([batch for batch, _ in lessons])
            values = []
            for row, outputs, lesson in zip(self._rows, said, lessons, strict=True):
                row.member.begin_step()
                values.append(row.member.terms(outputs, lesson))
        for row, terms in zip(self._rows, values, strict=True):
            row.member.look_at_gradients(terms, list(self._weights.values()))
        self.learn(values, self.gradients(values))
        share = (time.perf_counter() - began) / len(self._rows)
        for row in self._rows:
            row.member.seconds += share

    def gradients(self, values: Sequence[Mapping[str, Tensor]]) -> list[Gradients]:
        """Each member's, of its own terms."""
        torch.stack([value for terms in values for value in terms.values()]).sum().backward()
        return [self._of_member(place, row) for place, row in enumerate(self._rows)]

    def learn(self, values: Sequence[Mapping[str, Tensor]], gradients: Sequence[Gradients]) -> None:
        """Take the common step; a member whose terms or gradients are not finite spoils its own row alone."""
        for row, terms, own in zip(self._rows, values, gradients, strict=True):
            row.member.guard(terms, [own])
            if row.member.training.clip is not None:
                clip([own], row.member.training.clip)
        self._first.set_rate(self._optimizer)
        take_step(self._optimizer)
        if not self._shared:
            self._share()  # some optimizers begin to remember in their first step
            self._shared = True
        for row in self._rows:
            row.member.end_step()

    def _of_member(self, place: int, row: _Row) -> Gradients:
        """The gradients of a member's own parameters: rows of the common ones, and of its losses' as they are."""
        found: Gradients = []
        for name, parameter in zip(row.names, row.member.parameters, strict=True):
            gradient = self._weights[name].grad if name else parameter.grad
            found.append(gradient[place] if name and gradient is not None else gradient)
        return found

    def look(self, batches: Sequence[Batch]) -> list[Outputs]:
        """The outputs of every member for its own batch."""
        inputs = [batch.views[self._first.network.view] for batch in batches]
        shared = all(x is inputs[0] for x in inputs)
        x = inputs[0] if shared else torch.stack(inputs)

        def look(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            said: Outputs = functional_call(self._body, state, (x,))
            return said.logits, said.features

        state = {f"model.{name}": rows for name, rows in (self._weights | self._buffers).items()}
        try:
            logits, features = vmap(look, in_dims=(0, None if shared else 0))(state, x)
        except RuntimeError as error:
            if "randomness" not in str(error):
                raise
            raise TrainingError(
                f"{self._first.title}: its network draws random numbers, and cannot be stacked with others; write "
                "`training.stack: false`"
            ) from error
        layers = zip(*(feature.unbind() for feature in features.values()), strict=True)
        by_member = [dict(zip(features, layer, strict=True)) for layer in layers] or [{} for _ in batches]
        return [Outputs(said, seen) for said, seen in zip(logits.unbind(), by_member, strict=True)]


class _Looking(nn.Module):
    """A network as a module, so that its weights can be given from outside."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.model, self._network = network.model, network

    def forward(self, x: Tensor) -> Outputs:
        return self._network.look(x)


def _common(members: Sequence[Tensor]) -> Tensor:
    """One tensor of those of all members, which become its rows."""
    with torch.no_grad():
        rows = torch.stack([member.detach() for member in members])
        for member, row in zip(members, rows, strict=True):
            member.data = row
    return rows


class _Linear(nn.Linear):
    """A linear layer that, for several networks on one input, is one product of wide matrices."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x, self.weight, self.bias)
        return y


class _Product(torch.autograd.Function):
    """``F.linear`` with a rule of its own for several weights; gradients come from what the rule is made of."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, int]:
        """Of (S, O, I) weights: (B, I) inputs that all share, or (S, …, I) of each → (S, …, O)."""
        stacked, outputs, width = weight.shape
        if in_dims[0] is None and x.ndim == 2:
            wide = F.linear(x, weight.reshape(-1, width), None if bias is None else bias.reshape(-1))
            return wide.unflatten(1, (stacked, outputs)).transpose(0, 1), 0
        if in_dims[0] is None:
            x = x.expand(stacked, *x.shape)
        rows = torch.bmm(x.flatten(1, -2), weight.transpose(1, 2))
        rows = rows if bias is None else rows + bias[:, None]
        return rows.unflatten(1, x.shape[1:-1]), 0
