"""Losses on what transformers attend to."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor

from kdrun.contracts import Batch, Loss, Outputs, Published, Taps
from kdrun.errors import Mismatch
from kdrun.losses.base import LayerConfig
from kdrun.losses.matching import Pair, chosen_layer, with_layers
from kdrun.losses.numerics import exact, fixed, full, log_relative_entropy
from kdrun.taps import LayerTable

Relation = Literal["queries-keys", "queries", "keys", "values"]
COMPARED: dict[Relation, tuple[int, int]] = {
    "queries-keys": (0, 1),
    "queries": (0, 0),
    "keys": (1, 1),
    "values": (2, 2),
}
"""Of queries, keys and values, the two that a relation compares."""


class SelfAttentionRelations(Loss):
    """Self-attention relations: Σ over relations of the mean over B·R·T of KL(softmax(a bᵀ/√d)_t ‖ the same of s).

    Taps of each network the queries, keys and values (B, T, 3·D) of one layer of self-attention, the last by default.
    Each is cut into R relation heads of d = D/R, the network's own heads where both have as many. The relation
    `queries-keys` is the attention itself, of queries with keys; the others are of queries, keys or values with
    themselves. Tokens that only one network learns (class or distillation tokens) are left out.

    Source: Wang, Wei, Dong, Bao, Yang, Zhou, "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of
    Pre-Trained Transformers", 2020; with relation heads: Wang, Bao, Huang, Dong, Wei, "MiniLMv2: Multi-Head
    Self-Attention Relation Distillation for Compressing Pretrained Transformers", 2021.
    Trap: what comes after the layer learns nothing of it, the classifier in any case. The second paper takes an upper
    middle layer of a large teacher, not its last. Memory is B·R·T² floats for each relation and network.
    """

    class Config(LayerConfig):
        """Options of ``minilm``."""

        kind: Literal["minilm"]
        relations: Annotated[
            list[Relation], Field(min_length=1), AfterValidator(lambda names: list(dict.fromkeys(names)))
        ] = ["queries-keys", "values"]
        """what is compared: queries-keys and values as in MiniLM; queries, keys and values as in MiniLMv2"""
        relation_heads: int | None = Field(default=None, ge=1)
        """into how many parts queries, keys and values are cut; a divisor of both networks' widths. The networks' own
        heads where nothing is said, if both have as many"""

    config: Config
    on_logits = False
    published = {
        "minilm": Published(
            losses=[{"kind": "ce", "weight": 1}, {"kind": "minilm", "weight": 1}],
            source="Wang, Wei, Dong, Bao, Yang, Zhou, MiniLM: Deep Self-Attention Distillation for Task-Agnostic "
            "Compression of Pre-Trained Transformers, 2020; there on text, before and without the labels, which are "
            "kdrun's, weighed alike",
        ),
        "minilm-v2": Published(
            losses=[
                {"kind": "ce", "weight": 1},
                {"kind": "minilm", "weight": 1, "relations": ["queries", "keys", "values"]},
            ],
            source="Wang, Bao, Huang, Dong, Wei, MiniLMv2: Multi-Head Self-Attention Relation Distillation for "
            "Compressing Pretrained Transformers, 2021; there on text, before and without the labels, which are "
            "kdrun's, weighed alike, and with 48 or 64 relation heads",
        ),
    }
    pair: Pair
    heads: int
    learned: tuple[int, int]
    """How many of each network's tokens are learned, and come first."""

    def taps(self, student: LayerTable, teacher: LayerTable | None) -> Taps:
        """One layer of each; raises ``Mismatch`` where one has none, or heads or tokens do not fit."""
        teacher = with_layers(teacher, "minilm")
        ours = _attention(student, self.config.student_layer, "student_layer")
        theirs = _attention(teacher, self.config.teacher_layer, "teacher_layer")
        self.pair = ours, theirs
        self.heads = self._relation_heads((student, ours), (teacher, theirs))
        self.learned = _learned_tokens((student, ours), (teacher, theirs))
        return Taps((ours,), (theirs,))

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """The sum over relations, ≥ 0."""
        assert teacher is not None
        ours = self._parts(full(student.features[self.pair[0]]), self.learned[0])
        theirs = self._parts(fixed(teacher.features[self.pair[1]]), self.learned[1])
        with exact(ours):
            pairs = [COMPARED[relation] for relation in self.config.relations]
            return torch.stack(
                [
                    log_relative_entropy(_related(theirs, *pair), _related(ours, *pair)).mean()
                    for pair in pairs
                ]
            ).sum()

    def _parts(self, x: Tensor, learned: int) -> Tensor:
        """Queries, keys and values (B, T, 3·D) → (3, B, R, T, d), of the tokens that both networks have."""
        if learned > (common := min(self.learned)):
            x = torch.cat((x[:, :common], x[:, learned:]), dim=1)
        return x.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def _relation_heads(self, *layers: tuple[LayerTable, str]) -> int:
        own = [table.attentions[layer] for table, layer in layers]
        widths = [table.shapes[layer][1] // 3 for table, layer in layers]
        heads = self.config.relation_heads or (own[0] if own[0] == own[1] else None)
        if heads is not None and not any(width % heads for width in widths):
            return heads
        common = math.gcd(*widths)
        divisors = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        owners = [table.owner for table, _ in layers]
        if heads is None:
            words = (
                f"'minilm' compares head by head, and {owners[0]} has {own[0]} heads, {owners[1]} {own[1]}"
            )
        else:
            words = f"{heads} heads cannot share {widths[0]} dimensions of {owners[0]} and {widths[1]} of {owners[1]}"
        raise Mismatch(words, f"write relation_heads: one of {divisors}", "relation_heads")


def _related(parts: Tensor, one: int, other: int) -> Tensor:
    """The logarithms of what each token attends to, (B, R, T, T), of (3, B, R, T, d)."""
    scores = parts[one] @ parts[other].mT / math.sqrt(parts.shape[-1])
    return F.log_softmax(scores, dim=-1)


def _attention(table: LayerTable, named: str | None, key: str) -> str:
    """A layer that gives queries, keys and values, by default the last."""
    found = list(table.attentions)
    if not found:
        raise Mismatch(
            f"'minilm' compares self-attention, and {table.owner} names no layer that gives queries, keys and values",
            "use a vit, or a transformer of timm's, for student and teacher; or hint or rkd, which compare any two "
            "networks",
            key,
        )
    layer = chosen_layer(table, named, found[-1], key)
    if layer not in table.attentions:
        raise Mismatch(
            f"layer '{layer}' of {table.owner} does not give queries, keys and values",
            f"layers that do: {', '.join(found)}",
            key,
        )
    return layer


def _learned_tokens(*layers: tuple[LayerTable, str]) -> tuple[int, int]:
    """How many tokens of each network are learned; raises ``Mismatch`` where they have not as many others."""
    counts = [table.shapes[layer][0] for table, layer in layers]
    learned = [
        table.layout.learned if table.layout is not None and len(table.layout) == count else 0
        for (table, _), count in zip(layers, counts, strict=True)
    ]
    if counts[0] - learned[0] != counts[1] - learned[1]:
        told = [
            f"{table.owner} has {count - own} beside {own} learned"
            for (table, _), count, own in zip(layers, counts, learned, strict=True)
        ]
        raise Mismatch(
            f"'minilm' compares token by token, and {told[0]}, {told[1]}",
            "give both patches of one size and pictures of one size, or use at, hint or rkd",
        )
    return learned[0], learned[1]
