"""Residual networks for small pictures, as the distillation literature uses them.

Parameters are named as in torchvision (`resnet*`) and as in the reference code of "Contrastive Representation
Distillation" (`wrn-*`), so that weights trained elsewhere fit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor, nn

from kdrun.contracts import Model, ModelConfig
from kdrun.models.layers import Add, global_pool, he_normal, picture

STEM_AND_STAGES = {"": (16, 16, 32, 64), "x4": (32, 64, 128, 256)}
"""Channels of the stem and of the three stages, by what follows the depth in a kind."""


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class _Residual(nn.Module, ABC):
    """What blocks with an identity branch share: the sum and the last ReLU, each a module.

    ``outputs`` is the number of channels that the block gives, ``last_norm`` names the BatchNorm before the sum.
    """

    last_norm: ClassVar[str]

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
        self.add = Add()
        self.relu = nn.ReLU()

    @abstractmethod
    def branch(self, x: Tensor) -> Tensor:
        """What is learned on top of the identity."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) → (B, outputs, H / stride, W / stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(self.add(self.branch(x), identity))
        return out


class BasicBlock(_Residual):
    """Two 3×3 convolutions."""

    last_norm = "bn2"

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride)
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs)

    def branch(self, x: Tensor) -> Tensor:
        """Convolution, ReLU, convolution, each normalised."""
        out: Tensor = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return out


class Bottleneck(_Residual):
    """A 3×3 convolution between two 1×1 ones, on a quarter of the channels."""

    last_norm = "bn3"

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride)
        middle = outputs // 4
        self.conv1 = _conv(inputs, middle, 1)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(middle, middle, 3, stride)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = _conv(middle, outputs, 1)
        self.bn3 = nn.BatchNorm2d(outputs)

    def branch(self, x: Tensor) -> Tensor:
        """Narrow, convolve, widen, each normalised."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        out: Tensor = self.bn3(self.conv3(x))
        return out


class ResNet(Model):
    """Residual networks with a 3×3 stem for pictures of about 32×32 pixels.

    He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2016. The depth is in the kind;
    `x4` has four times the channels in the stages; `resnet50-cifar` is the ImageNet network with the small
    stem. ``layer1``, ``layer2``, … are the stages; their last block's ``add`` is the map before the last ReLU.
    """

    class Config(ModelConfig):
        """Options of the residual networks."""

        kind: Literal[
            "resnet8",
            "resnet14",
            "resnet20",
            "resnet32",
            "resnet44",
            "resnet56",
            "resnet110",
            "resnet8x4",
            "resnet32x4",
            "resnet50-cifar",
        ]

    head = "fc"
    pooled = "pool"

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, _, _ = picture(config.kind, shape)
        block, blocks, widths = _plan(config.kind)
        self.conv1 = _conv(channels, widths[0], 3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.stages = tuple(f"layer{i}" for i, _ in enumerate(blocks, start=1))
        for i, (name, count, pair) in enumerate(zip(self.stages, blocks, pairwise(widths), strict=True)):
            self.add_module(name, _stage(block, count, *pair, stride=2 if i else 1))
        last = [f"{name}.{count - 1}" for name, count in zip(self.stages, blocks, strict=True)]
        self.preactivations = tuple(f"{name}.add" for name in last)
        self.norms = tuple(f"{name}.{block.last_norm}" for name in last)
        self.pool = global_pool()
        self.fc = nn.Linear(widths[-1], classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of pictures (B, K, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        logits: Tensor = self.fc(self.pool(x))
        return logits


def _plan(kind: str) -> tuple[type[_Residual], list[int], tuple[int, ...]]:
    """The block, the number of blocks in each stage, and the channels of the stem and of the stages."""
    if kind == "resnet50-cifar":
        return Bottleneck, [3, 4, 6, 3], (64, 256, 512, 1024, 2048)
    depth, _, _ = kind.removeprefix("resnet").partition("x")
    return BasicBlock, [(int(depth) - 2) // 6] * 3, STEM_AND_STAGES[kind.removeprefix(f"resnet{depth}")]


def _stage(block: type[_Residual], count: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        block(inputs, outputs, stride), *(block(outputs, outputs, 1) for _ in range(count - 1))
    )


class WideResNet(Model):
    """Wide residual networks `wrn-<depth>-<width>`, which normalise and activate before each convolution.

    Zagoruyko and Komodakis, "Wide Residual Networks", 2016. A group's output is a sum that nothing activates;
    the stages are that sum after the normalisation and ReLU which the next group, or the classifier, reads it
    through (``block2.layer.0.relu1``, ``block3.layer.0.relu1``, ``relu``). The sums themselves are
    ``block1``, ``block2``, ``block3``.
    """

    class Config(ModelConfig):
        """Options of the wide residual networks."""

        kind: Literal["wrn-16-1", "wrn-16-2", "wrn-40-1", "wrn-40-2"]

    stages = ("block2.layer.0.relu1", "block3.layer.0.relu1", "relu")
    preactivations = norms = ("block2.layer.0.bn1", "block3.layer.0.bn1", "bn1")
    pooled = "pool"
    head = "fc"

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, _, _ = picture(config.kind, shape)
        depth, factor = (int(number) for number in config.kind.split("-")[1:])
        blocks = (depth - 4) // 6
        self.conv1 = _conv(channels, 16, 3)
        self.block1 = _group(blocks, 16, 16 * factor, stride=1)
        self.block2 = _group(blocks, 16 * factor, 32 * factor, stride=2)
        self.block3 = _group(blocks, 32 * factor, 64 * factor, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * factor)
        self.relu = nn.ReLU()
        self.pool = global_pool()
        self.fc = nn.Linear(64 * factor, classes)
        he_normal(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of pictures (B, K, H, W)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(self.pool(self.relu(self.bn1(x))))
        return logits


class _PreActivation(nn.Module):
    """Two 3×3 convolutions, each after its normalisation and ReLU.

    Where the width changes, a 1×1 convolution of the activated input takes the identity's place.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = _conv(outputs, outputs, 3)
        self.convShortcut = None if inputs == outputs else _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) → (B, outputs, H / stride, W / stride)."""
        active = self.relu1(self.bn1(x))
        identity = x if self.convShortcut is None else self.convShortcut(active)
        out: Tensor = identity + self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return out


def _group(count: int, inputs: int, outputs: int, stride: int) -> nn.Module:
    group = nn.Sequential()
    first = _PreActivation(inputs, outputs, stride)
    group.add_module(
        "layer", nn.Sequential(first, *(_PreActivation(outputs, outputs, 1) for _ in range(count - 1)))
    )
    return group
