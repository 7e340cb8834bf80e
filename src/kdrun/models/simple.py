"""Small networks for tables, digits and other small pictures."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kdrun.contracts import Model, ModelConfig
from kdrun.errors import Mismatch
from kdrun.models.layers import Pick, picture
from kdrun.taps import Layout

Width = Annotated[int, Field(ge=1)]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class MLP(Model):
    """Fully connected layers over the flattened input, of any shape.

    ``body.0``, ``body.1``, … give the hidden vectors (B, D) and are the stages.
    """

    class Config(ModelConfig):
        """Options of `mlp`."""

        kind: Literal["mlp"]
        hidden: list[Width] = [512, 512]
        """widths of the hidden layers; `[]` for a linear classifier"""
        activation: Literal["relu", "gelu", "tanh"] = "relu"
        """the non-linearity after each hidden layer"""
        dropout: float = Field(default=0.0, ge=0, lt=1)
        """share of each hidden vector that is dropped in training"""
        batch_norm: bool = False
        """normalise each hidden layer over the batch, before its activation"""

    head = "classifier"

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        widths = [math.prod(shape), *config.hidden]
        self.flatten = nn.Flatten()
        self.body = nn.Sequential(*(_hidden(config, *pair) for pair in pairwise(widths)))
        self.classifier = nn.Linear(widths[-1], classes)
        self.stages = tuple(f"body.{i}" for i in range(len(self.body)))
        self.pooled = self.stages[-1] if self.stages else "flatten"
        if config.activation == "relu":
            self.preactivations = tuple(f"{stage}.{int(config.batch_norm)}" for stage in self.stages)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of inputs (B, …)."""
        logits: Tensor = self.classifier(self.body(self.flatten(x)))
        return logits


def _hidden(config: MLP.Config, inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(inputs, outputs)]
    if config.batch_norm:
        layers.append(nn.BatchNorm1d(outputs))
    layers.append(ACTIVATIONS[config.activation]())
    if config.dropout:
        layers.append(nn.Dropout(config.dropout))
    return nn.Sequential(*layers)


class CNN(Model):
    """A few convolutions and one hidden layer, for pictures of 8×8 to 64×64 pixels.

    After LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998,
    with batch normalisation and ReLUs. The blocks ``body.0``, ``body.1``, … are the stages.
    """

    class Config(ModelConfig):
        """Options of `cnn`."""

        kind: Literal["cnn"]
        width: int = Field(default=32, ge=1)
        """channels of the first block; each further block has twice those of the one before"""
        depth: int = Field(default=2, ge=1, le=6)
        """number of blocks; each halves the picture while it has two pixels a side"""
        hidden: int = Field(default=128, ge=1)
        """width of the layer before the classifier"""
        dropout: float = Field(default=0.0, ge=0, lt=1)
        """share of the hidden vector that is dropped in training"""

    head = "classifier"
    pooled = "hidden"

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = picture(config.kind, shape)
        body: list[nn.Module] = []
        for i in range(config.depth):
            shrinks = min(height, width) > 1
            body.append(_block(channels, config.width * 2**i, shrinks))
            channels = config.width * 2**i
            height, width = (height // 2, width // 2) if shrinks else (height, width)
        self.body = nn.Sequential(*body)
        self.hidden = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * width, config.hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
        )
        self.classifier = nn.Linear(config.hidden, classes)
        self.stages = tuple(f"body.{i}" for i in range(config.depth))
        self.preactivations = self.norms = tuple(f"{stage}.1" for stage in self.stages)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of pictures (B, K, H, W)."""
        logits: Tensor = self.classifier(self.hidden(self.body(x)))
        return logits


def _block(inputs: int, outputs: int, shrinks: bool) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if shrinks else []))


class GRU(Model):
    """A recurrent network that reads a picture row by row, and a table number by number.

    Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014. The layers ``body.0``, … give
    the hidden states of all steps (B, T, D) and are the stages; the embedding is the last step's.
    """

    class Config(ModelConfig):
        """Options of `gru`."""

        kind: Literal["gru"]
        hidden: int = Field(default=64, ge=1)
        """width of the hidden state"""
        layers: int = Field(default=1, ge=1)
        """number of layers"""
        dropout: float = Field(default=0.0, ge=0, lt=1)
        """share of each layer's states that is dropped in training"""

    head = "classifier"
    pooled = "last"

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        inputs = 1 if len(shape) == 1 else math.prod(shape) // shape[-2]
        widths = [inputs, *[config.hidden] * config.layers]
        self.body = nn.Sequential(*(_States(*pair, config.dropout) for pair in pairwise(widths)))
        self.last = Pick(-1)
        self.classifier = nn.Linear(config.hidden, classes)
        self.stages = tuple(f"body.{i}" for i in range(config.layers))
        self.token_layout = Layout(0, (shape[0] if len(shape) == 1 else shape[-2], 1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of tables (B, F), sequences (B, T, D) or pictures (B, K, H, W)."""
        rows = x.unsqueeze(-1) if x.ndim == 2 else x.movedim(-2, 1).flatten(2)
        logits: Tensor = self.classifier(self.last(self.body(rows)))
        return logits


class _States(nn.Module):
    """One recurrent layer whose output is the states alone, so that it can be tapped."""

    def __init__(self, inputs: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.gru = nn.GRU(inputs, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T, hidden)."""
        states: Tensor = self.dropout(self.gru(x)[0])
        return states


class ViT(Model):
    """A small vision transformer with a class token, learned positions and normalisation before each part.

    Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021. The stages ``blocks.0``, … and their parts
    ``blocks.0.attention``, … give tokens (B, T, D), the class token first; it is the embedding. The distillation token,
    where there is one, comes second; the embedding is then both (B, 2·D), and the logits are the mean of two
    classifiers', of which each reads its own token: Touvron et al., "Training Data-Efficient Image Transformers &
    Distillation through Attention", 2021.
    """

    class Config(ModelConfig):
        """Options of `vit`."""

        kind: Literal["vit"]
        patch: int = Field(default=4, ge=1)
        """pixels a side of a patch; divides the picture's height and width"""
        dim: int = Field(default=64, ge=1)
        """width of a token"""
        depth: int = Field(default=4, ge=1)
        """number of blocks"""
        heads: int = Field(default=4, ge=1)
        """attention heads; divides `dim`"""
        mlp_ratio: float = Field(default=2.0, gt=0, le=100)
        """width of a block's hidden layer, in tokens' widths"""
        dropout: float = Field(default=0.0, ge=0, lt=1)
        """share of each block's updates that is dropped in training"""
        distillation_token: bool = False
        """a second token with a classifier of its own: in a mix of terms on labels and on a teacher's logits, the first
        teach the class token's classifier and the others this one; it predicts by the mean of both"""

    head = "classifier"
    pooled = "token"
    distillation_token: nn.Parameter | None

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = picture(config.kind, shape)
        _check(config, height, width)
        patches = (height // config.patch) * (width // config.patch)
        self.patches = nn.Conv2d(channels, config.dim, config.patch, stride=config.patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, config.dim))
        second = nn.Parameter(torch.empty(1, 1, config.dim)) if config.distillation_token else None
        self.register_parameter("distillation_token", second)
        self.positions = nn.Parameter(torch.empty(1, len(self._learned) + patches, config.dim))
        self.blocks = nn.Sequential(*(_Block(config) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.dim)
        self.token: nn.Module = Pick(0)
        self.classifier: nn.Module = nn.Linear(config.dim, classes)
        if config.distillation_token:
            self.token = _FirstTwo()
            self.classifier = _TwoClassifiers(config.dim, classes)
            self.logits_for = {
                "labels": "classifier.of_class_token",
                "teachers": "classifier.of_distillation_token",
            }
        self.stages = tuple(f"blocks.{i}" for i in range(config.depth))
        self.token_layout = Layout(len(self._learned), (height // config.patch, width // config.patch))
        self.attentions = {f"{stage}.attention.qkv": config.heads for stage in self.stages}
        self._draw()

    @property
    def _learned(self) -> list[Tensor]:
        """The tokens (1, 1, D) that are no patches."""
        return [token for token in (self.class_token, self.distillation_token) if token is not None]

    def _draw(self) -> None:
        linear = [module for module in self.modules() if isinstance(module, nn.Linear)]
        for weight in (*self._learned, self.positions, *(module.weight for module in linear)):
            nn.init.trunc_normal_(weight, std=0.02)
        for module in linear:
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of pictures (B, K, H, W)."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        learned = (token.expand(len(x), -1, -1) for token in self._learned)
        tokens = torch.cat((*learned, patches), dim=1) + self.positions
        logits: Tensor = self.classifier(self.token(self.norm(self.blocks(tokens))))
        return logits


class _FirstTwo(nn.Module):
    """The first two tokens side by side."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, 2·D)."""
        return x[:, :2].flatten(1)


class _TwoClassifiers(nn.Module):
    """The mean of two linear classifiers, each of its own token."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.of_class_token = nn.Linear(dim, classes)
        self.of_distillation_token = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2·D) → logits (B, C)."""
        first, second = x.chunk(2, dim=1)
        logits: Tensor = (self.of_class_token(first) + self.of_distillation_token(second)) / 2
        return logits


def _check(config: ViT.Config, height: int, width: int) -> None:
    """Raise ``Mismatch`` where patches do not tile the picture, or heads do not share the tokens evenly."""
    if height % config.patch or width % config.patch:
        side = math.gcd(height, width)
        divisors = ", ".join(str(d) for d in range(1, side + 1) if side % d == 0)
        raise Mismatch(
            f"patches of {config.patch} pixels do not tile pictures of {height}×{width}",
            f"write one of {divisors}",
            "patch",
        )
    if config.dim % config.heads:
        divisors = ", ".join(str(d) for d in range(1, config.dim + 1) if config.dim % d == 0)
        raise Mismatch(
            f"{config.heads} heads cannot share {config.dim} dimensions evenly",
            f"write one of {divisors}",
            "heads",
        )


class _Block(nn.Module):
    """Attention among the tokens, then a layer on each of them; both add to what they read."""

    def __init__(self, config: ViT.Config) -> None:
        super().__init__()
        hidden = max(1, round(config.dim * config.mlp_ratio))
        self.norm1 = nn.LayerNorm(config.dim)
        self.attention = _Attention(config.dim, config.heads)
        self.norm2 = nn.LayerNorm(config.dim)
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, config.dim),
            nn.Dropout(config.dropout),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    """Multi-head self-attention. Vaswani et al., "Attention Is All You Need", 2017."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.projection = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        query, key, value = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        tokens: Tensor = self.projection(mixed.transpose(1, 2).flatten(2))
        return tokens
