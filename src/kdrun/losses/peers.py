"""Losses of students that learn together, without a teacher: peers of the student, trained along with it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    WithJsonSchema,
    model_validator,
)
from torch import Tensor, nn

from kdrun import registry
from kdrun.contracts import Batch, Context, Loss, LossConfig, ModelConfig, Outputs, Published
from kdrun.errors import Mismatch
from kdrun.losses.base import Temperature, main_classes
from kdrun.losses.labels import CrossEntropy
from kdrun.losses.numerics import exact, full, own, relative_entropy


def _network(value: object) -> ModelConfig:
    """The config of a network that gradients can train from its first weights on; raises ``ValueError``."""
    if isinstance(value, ModelConfig):
        return value
    config: ModelConfig = registry.MODELS.read(value)
    model = registry.MODELS[config.kind]
    if model.fitted or model.combines:
        raise ValueError(f"'{config.kind}' is trained in no steps, and a peer is; name a network")
    if model.compresses:
        raise ValueError(f"'{config.kind}' is made of a finished student, and a peer is not; name a network")
    if config.initial_weights is not None or getattr(config, "pretrained", False):
        raise ValueError("a peer starts from weights of its own; name no others")
    return config


AnyNetwork = Annotated[
    SerializeAsAny[ModelConfig],
    BeforeValidator(_network),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]}),
    registry.MODELS,
]


class PeerConfig(LossConfig):
    """Options of every loss of peers."""

    peers: int = Field(default=1, ge=1, le=9)
    """how many networks of the student's architecture learn along with it, from other first weights"""
    models: list[AnyNetwork] | None = Field(default=None, min_length=1, max_length=9)
    """peers of other architectures instead: `[{kind: cnn}, mlp]`"""
    label_smoothing: float | None = Field(default=None, ge=0, le=1)
    """of the labels that the peers learn; the training's where nothing is said"""

    @model_validator(mode="after")
    def _counted_once(self) -> Self:
        if self.models is not None and self.peers not in (1, len(self.models)):
            raise ValueError("`models` says how many peers there are; remove `peers`")
        return self

    @property
    def passes(self) -> int:
        """Forward and backward of each peer that is like the student."""
        return 0 if self.models else 3 * self.peers

    @property
    def networks(self) -> Sequence[ModelConfig]:
        """The peers that are not."""
        return self.models or ()


class _Peers(Loss):
    """Networks that see what the student sees, and learn from the labels and from all others.

    The peers' own losses are left out of the value and not of the gradient: what is logged is the student's.
    """

    needs_teacher = False
    learns_unlabelled = True
    config: PeerConfig
    view: str

    def build(self, context: Context) -> None:
        """Make the peers; raises ``Mismatch`` where one cannot read what the student sees."""
        self.view, models = context.view, self.config.models
        try:
            self.peers = nn.ModuleList(
                context.twin(number, models[number - 1]) if models else context.twin(number)
                for number in range(1, len(models or range(self.config.peers)) + 1)
            )
        except Mismatch as error:
            raise Mismatch(str(error), error.hint, "models") from error
        self.labels = CrossEntropy(
            CrossEntropy.Config(kind="ce", label_smoothing=self.config.label_smoothing)
        )

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """What the student has to learn of the others, ≥ 0."""
        said = [full(student.logits), *(full(peer(batch.views[self.view])) for peer in self.peers)]
        with exact(student.logits):
            values = [self.of_others(place, said, batch) for place in range(len(said))]
            values += [self.labels(Outputs(logits), None, batch) for logits in said[1:]]
            theirs = torch.stack(values[1:]).sum()
            return values[0] + (theirs - theirs.detach())

    @abstractmethod
    def of_others(self, place: int, said: Sequence[Tensor], batch: Batch) -> Tensor:
        """What the network at a place has to learn of all that are ``said``, logits (B, C) of each; a scalar."""


class MutualLearning(_Peers):
    """Deep mutual learning: mean over peers k and samples of KL(p_k ‖ softmax(z)), at temperature 1.

    Logits (B, C). Each peer learns the same of the student and of the other peers, and the labels. Peers are of the
    student's architecture or of those that `models` names, and are thrown away when it has learnt.

    Source: Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", 2018.
    Trap: the authors' networks take turns, and each sees what the others say after their steps; here all step at once.
    A weight other than 1 also weighs the labels that the peers learn; `training.clip` is of all networks together.
    """

    class Config(PeerConfig):
        """Options of ``mutual``."""

        kind: Literal["mutual"]

    config: Config
    published = {
        "mutual": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "mutual", "weight": 1}],
            source="Zhang, Xiang, Hospedales, Lu, Deep Mutual Learning, 2018",
        )
    }

    def of_others(self, place: int, said: Sequence[Tensor], batch: Batch) -> Tensor:
        """The mean divergence from each other network."""
        log_q = F.log_softmax(said[place], dim=-1)
        others = [F.softmax(z.detach(), dim=-1) for k, z in enumerate(said) if k != place]
        return torch.stack([relative_entropy(p, log_q).mean() for p in others]).mean()


class CollaborativeLearning(_Peers):
    """Knowledge distillation via collaborative learning: T² · mean over samples of KL(softmax(t/T) ‖ softmax(z/T)).

    Logits (B, C). t are the logits of all networks together, the student's included: for each class the least of
    z_c − z_y (`min-logit`, y the label, or where it is hidden what the networks' mean logits say), each sample's own
    from the network that explains its label best (`best`), or their mean. Each peer learns the same, and the labels.
    Peers are of the student's architecture or of those that `models` names, and are thrown away when it has learnt.

    Source: Guo et al., "Online Knowledge Distillation via Collaborative Learning", 2020.
    Trap: the authors show each network another augmentation; here all see the same one. A weight other than 1 also
    weighs the labels that the peers learn; `training.clip` is of all networks together.
    """

    class Config(PeerConfig):
        """Options of ``kdcl``."""

        kind: Literal["kdcl"]
        temperature: Temperature = 2.0
        """softens all distributions"""
        together: Literal["min-logit", "best", "mean"] = "min-logit"
        """how the networks' logits become those of a teacher"""

    config: Config
    published = {
        "kdcl": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "kdcl", "weight": 1}],
            source="Guo et al., Online Knowledge Distillation via Collaborative Learning, 2020",
        )
    }

    def of_others(self, place: int, said: Sequence[Tensor], batch: Batch) -> Tensor:
        """The divergence from what all say together."""
        t, logits = self.temperature, torch.stack([z.detach() for z in said])
        p = F.softmax(self._teacher(logits, batch) / t, dim=-1)
        return t**2 * relative_entropy(p, F.log_softmax(said[place] / t, dim=-1)).mean()

    def _teacher(self, logits: Tensor, batch: Batch) -> Tensor:
        """Logits (B, C) of those of all networks (K, B, C)."""
        together = logits.mean(dim=0)
        if self.config.together == "mean":
            return together
        labels = main_classes(batch, together)
        of_labels = torch.stack([own(z, labels) for z in logits])
        if self.config.together == "min-logit":
            return (logits - of_labels[:, :, None]).amin(dim=0)
        best = (of_labels - logits.logsumexp(dim=-1)).argmax(dim=0)
        return logits[best, torch.arange(len(best), device=best.device)]
