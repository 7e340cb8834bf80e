"""Students of one architecture that take their steps together: one batched pass through all their networks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from kdrun.contracts import Batch, Outputs
from kdrun.models import Network
from kdrun.optimization import lay_alike
from kdrun.student import Gradients, Lesson, Student


class Team:
    """Students that take a step together: one by itself, or several stacked.

    Stacked, they keep their own losses, optimizers, averages and logs, and a failure of one is its own; their weights
    become rows of common tensors. What each learns equals what it learns by itself up to rounding.
    """

    def __init__(self, members: Sequence[Student]) -> None:
        self.members = members
        self._stack = Stack(members) if len(members) > 1 else None

    def step(self, lessons: Sequence[Lesson]) -> None:
        """Learn, each member from its own lesson."""
        if self._stack is None:
            self.members[0].step(*lessons[0])
        else:
            self._stack.step(lessons)


def teams(students: Sequence[Student]) -> list[Team]:
    """Students sorted into teams: those that can be stacked with others, and each of the rest alone."""
    companies: dict[Any, list[Student]] = {}
    for student in students:
        companies.setdefault(_likeness(student), []).append(student)
    return [Team(company) for company in companies.values()]


def why_not(student: Student) -> str | None:
    """What keeps a student from being stacked, or None."""
    modules = list(student.model.modules())
    if student.plugs.stages or student.plugs.momentum_gap is not None:
        return "its method has stages, or two momenta"
    if student.training.compile:
        return "it is compiled"
    if any(getattr(module, "p", 0) for module in modules if isinstance(module, nn.Dropout)):
        return "dropout draws anew for each"
    if any(isinstance(module, nn.RNNBase) for module in modules):
        return "recurrent networks cannot be batched"
    if student.network.further_views:
        return "it looks at a second view"
    if student.device.type == "cpu" and any(isinstance(module, nn.Conv2d) for module in modules):
        return "a CPU is slower at convolutions of several networks at once"
    return None


def _likeness(student: Student) -> Any:
    """What students that are stacked have in common; nothing but itself for one that cannot be."""
    if not student.training.stack or why_not(student) is not None:
        return student
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in student.model.state_dict().items())
    return repr(student.model), shapes, student.bf16, student.network.view


class Stack:
    """The networks of several students as one, and their common step."""

    def __init__(self, members: Sequence[Student]) -> None:
        self.members, first = members, members[0]
        network = first.network.copied(first.model, first.model.state_dict())
        network.model.train()
        for member in members:
            network.tap(member.network.layers)
        for module in network.model.modules():
            if type(module) is nn.Linear:
                module.__class__ = _Linear
        self._body = _Looking(network)
        self._weights = _rows([dict(member.model.named_parameters()) for member in members])
        self._buffers = _rows([dict(member.model.named_buffers()) for member in members])
        for weight in self._weights.values():
            weight.requires_grad_()
        self._names: list[list[str | None]] = []
        for member in members:
            known = {id(parameter): f"model.{name}" for name, parameter in member.model.named_parameters()}
            self._names.append([known.get(id(parameter)) for parameter in member.parameters])
            lay_alike(member.optimizers)

    def step(self, lessons: Sequence[Lesson]) -> None:
        """Learn, each member from its own lesson."""
        began = time.perf_counter()
        first = self.members[0]
        with first.arithmetic():
            said = self._look([batch for batch, _ in lessons])
            values = []
            for member, outputs, lesson in zip(self.members, said, lessons, strict=True):
                member.begin_step()
                values.append(member.terms(outputs, lesson))
        torch.stack([value for terms in values for value in terms.values()]).sum().backward()
        for place, (member, terms) in enumerate(zip(self.members, values, strict=True)):
            member.learn(terms, [self._gradients(place, member)])
        for weight in self._weights.values():
            weight.grad = None
        share = (time.perf_counter() - began) / len(self.members)
        for member in self.members:
            member.seconds += share

    def _gradients(self, place: int, member: Student) -> Gradients:
        """Those of a member's own parameters: rows of the common ones, and of its losses' as they are."""
        found: Gradients = []
        for name, parameter in zip(self._names[place], member.parameters, strict=True):
            gradient = self._weights[name].grad if name else parameter.grad
            found.append(gradient[place] if name and gradient is not None else gradient)
            parameter.grad = None
        return found

    def _look(self, batches: Sequence[Batch]) -> list[Outputs]:
        """The outputs of every member for its own batch."""
        view = self.members[0].network.view
        inputs = [batch.views[view] for batch in batches]
        shared = all(x is inputs[0] for x in inputs)

        def look(
            weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor
        ) -> tuple[Tensor, dict[str, Tensor]]:
            said: Outputs = functional_call(self._body, {**weights, **buffers}, (x,))
            return said.logits, said.features

        x = inputs[0] if shared else torch.stack(inputs)
        logits, features = vmap(look, in_dims=(0, 0, None if shared else 0))(self._weights, self._buffers, x)
        return [
            Outputs(logits[place], {name: feature[place] for name, feature in features.items()})
            for place in range(len(self.members))
        ]


class _Looking(nn.Module):
    """A network as a module, so that its weights can be given from outside."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.model, self._network = network.model, network

    def forward(self, x: Tensor) -> Outputs:
        return self._network.look(x)


def _rows(members: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Each weight of all members as one tensor, of which theirs are the rows from now on."""
    common = {}
    with torch.no_grad():
        for name in members[0]:
            common[f"model.{name}"] = rows = torch.stack([member[name].detach() for member in members])
            for row, member in zip(rows, members, strict=True):
                member[name].data = row
    return common


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
