"""What a model is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from kdrun.contracts.exchanged import Component, Side
from kdrun.schema import Schema
from kdrun.taps import Layout


class ModelConfig(Schema):
    """Options that every model has."""

    kind: str
    initial_weights: Path | None = Field(default=None, strict=False)
    """a local file (safetensors or .pt) to start from; its classifier is replaced where the classes differ"""


class Model(Component, nn.Module):
    """A network with named stages.

    Subclasses take ``(config, shape, classes)``, where ``shape`` is the input's without the batch, and raise
    ``Mismatch`` where they cannot read such an input. No layer before a tap works in place.
    """

    family = "model"

    made_from: ModelConfig
    """The config, set by whoever builds it."""
    lens: Callable[[Tensor], Tensor] | None = None
    """What is made of an input before it is read, by a hook; see ``models.lens``."""
    heads: Callable[[Tensor, Tensor], Tensor] | None = None
    """What is made of inputs and outputs, where each of several environments has a head; see ``models.heads``."""
    stages: tuple[str, ...]
    """Names of the layers whose outputs are the stages, shallow to deep."""
    preactivations: tuple[str, ...] = ()
    """For each stage the name of the layer whose output its last ReLU gets; empty where there are none."""
    norms: tuple[str, ...] = ()
    """For each stage the name of the BatchNorm before its last ReLU; empty where there are none."""
    token_layout: Layout | None = None
    """Where its tokens (B, T, D) come from; None where it has none, or nobody knows."""
    attentions: Mapping[str, int] = {}
    """Names of the layers whose outputs (B, T, 3·D) are the queries, keys and values of self-attention, each of all
    heads side by side, with their numbers of heads; shallow to deep."""
    pooled: str
    """Name of the layer whose output is the embedding (B, D) that the classifier sees."""
    head: str
    """Name of the classifier."""
    logits_for: Mapping[Side, str] = {}
    """Where the classifier is two, whose logits are averaged: the names of the one that learns from labels and of the
    one that learns from teachers."""
    fitted: ClassVar[bool] = False
    """Whether it is fitted at once, in no steps and without gradients; see ``models.fitted``."""
    reinforced: ClassVar[bool] = False
    """Whether it learns from rewards, by acting in its data set's environment; see ``models.agents``."""
    combines: ClassVar[bool] = False
    """Whether it is made of finished models, and given them in the place of a shape; see ``models.together``."""
    memory: int = 0
    """How many training samples it holds at most, which it is given before its first step."""
    held_buffers: tuple[str, ...] = ()
    """Names of the buffers that hold them, and what follows from them: no weights that another could start from."""
    compresses: ClassVar[bool] = False
    """Whether it is made of a finished student, and what it makes is that one, changed; see ``models.compressed``."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of inputs (B, …)."""

    def remember(self, samples: Tensor) -> None:
        """Hold training samples (M, …) as its ``lens`` shows them, M at most ``memory``.

        Its weights and its shapes stay as they are.
        """
        raise AssertionError(f"{type(self).__name__} has a memory, and does not say how it remembers")
