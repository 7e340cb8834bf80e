"""A network for several environments: one body, and a head for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kdrun.contracts import LEFT_OUT, JointSpec, Model, Spec


@dataclass(frozen=True)
class Heads:
    """Which of a classifier's outputs are the logits of a sample: those of the head of its environment.

    Of E heads of C outputs each, of which an environment with fewer actions leaves the last ones out. It has no
    parameters. ``left_out`` (E, C) is ``LEFT_OUT`` for these, and 0 for all others.
    """

    count: int
    classes: int
    left_out: Tensor = field(compare=False)

    @property
    def outputs(self) -> int:
        """Of the classifier."""
        return self.count * self.classes

    def __call__(self, x: Tensor, said: Tensor) -> Tensor:
        """Logits (B, C), of inputs (B, F), whose last E numbers tell the environment, and of all outputs (B, E·C).

        The own head's are taken to the bit: others are added as 0.
        """
        own = x[:, -self.count :, None].to(said.dtype)
        return ((said.unflatten(1, (self.count, self.classes)) + self.left_out) * own).sum(dim=1)


def heads_for(spec: Spec, device: torch.device) -> Heads | None:
    """The heads of a network for samples of a form; None where one environment, or none, is all."""
    if not isinstance(spec, JointSpec):
        return None
    left_out = torch.zeros(len(spec.parts), spec.classes, device=device)
    for number, part in enumerate(spec.parts.values()):
        left_out[number, part.classes :] = LEFT_OUT
    return Heads(len(spec.parts), spec.classes, left_out)


def choose_heads(model: Model, heads: Heads | None) -> None:
    """Have a model answer by the head of each sample's environment."""
    if heads is not None:
        model.heads = heads
        model.register_forward_hook(_chosen)  # as a function of the module it goes along with copies


def _chosen(model: Any, inputs: tuple[Tensor, ...], said: Tensor) -> Tensor:
    logits: Tensor = model.heads(inputs[0], said)
    return logits
