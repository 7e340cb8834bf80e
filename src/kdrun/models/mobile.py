"""Networks for small devices, in the forms for small pictures that the distillation literature uses.

Parameters are named as in the reference code of "Contrastive Representation Distillation", so that weights
trained elsewhere fit.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kdrun.contracts import Model, ModelConfig
from kdrun.models.layers import Add, Concat, Shuffle, global_pool, he_normal, picture, small_normal


class MobileNetV2(Model):
    """Inverted residuals with linear bottlenecks, at half of the published width.

    Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018. The stages are the outputs
    of the groups ``blocks.1``, ``blocks.2``, ``blocks.4`` and ``blocks.6``, the last of each size; nothing
    activates them.
    """

    class Config(ModelConfig):
        """Options of `mobilenetv2-half`."""

        kind: Literal["mobilenetv2-half"]

    GROUPS = (
        (1, 8, 1, 1),
        (6, 12, 2, 1),
        (6, 16, 3, 2),
        (6, 32, 4, 2),
        (6, 48, 3, 1),
        (6, 80, 3, 2),
        (6, 160, 1, 1),
    )
    """Expansion, channels, number of blocks and first stride of each group."""
    LAST = 1280

    stages = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")
    pooled = "pool"
    head = "classifier.0"

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, _, _ = picture(config.kind, shape)
        self.conv1 = nn.Sequential(*_convolve(channels, 16, 3, stride=2))
        inputs = 16
        self.blocks = nn.Sequential()
        for expansion, outputs, count, stride in self.GROUPS:
            self.blocks.append(_inverted_group(inputs, outputs, expansion, count, stride))
            inputs = outputs
        self.conv2 = nn.Sequential(*_convolve(inputs, self.LAST, 1))
        self.pool = global_pool()
        linear = nn.Linear(self.LAST, classes)
        self.classifier = nn.Sequential(linear)
        he_normal(self)
        small_normal(linear)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of pictures (B, K, H, W)."""
        logits: Tensor = self.classifier(self.pool(self.conv2(self.blocks(self.conv1(x)))))
        return logits


def _convolve(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution, normalised and activated."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def _inverted_group(inputs: int, outputs: int, expansion: int, count: int, stride: int) -> nn.Sequential:
    first = _InvertedResidual(inputs, outputs, expansion, stride)
    return nn.Sequential(
        first, *(_InvertedResidual(outputs, outputs, expansion, 1) for _ in range(count - 1))
    )


class _InvertedResidual(nn.Module):
    """Widen, convolve each channel by itself, narrow; added to the input where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *_convolve(inputs, wide, 1),
            *_convolve(wide, wide, 3, stride, groups=wide),
            *_convolve(wide, outputs, 1)[:-1],
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) → (B, outputs, H / stride, W / stride)."""
        out: Tensor = self.conv(x)
        return x + out if self.adds else out


class ShuffleNetV1(Model):
    """Grouped 1×1 convolutions with channel shuffles: three groups, 240 to 960 channels.

    Zhang, Zhou, Lin and Sun, "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile
    Devices", 2018. ``layer1``, ``layer2``, ``layer3`` are the stages; their last block's ``join`` is the map
    before the last ReLU. Weights start as PyTorch draws them.
    """

    class Config(ModelConfig):
        """Options of `shufflenetv1`."""

        kind: Literal["shufflenetv1"]

    STAGES = ((24, 240, 4), (240, 480, 8), (480, 960, 4))
    """Channels in, channels out and number of blocks."""

    stages = ("layer1", "layer2", "layer3")
    pooled = "pool"
    head = "linear"

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, _, _ = picture(config.kind, shape)
        self.conv1 = nn.Conv2d(channels, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu = nn.ReLU()
        self.layer1, self.layer2, self.layer3 = (_grouped_stage(*stage) for stage in self.STAGES)
        last = [f"{name}.{count - 1}" for name, (_, _, count) in zip(self.stages, self.STAGES, strict=True)]
        self.preactivations = tuple(f"{name}.join" for name in last)
        self.norms = tuple(f"{name}.bn3" for name in last)
        self.pool = global_pool()
        self.linear = nn.Linear(960, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of pictures (B, K, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        logits: Tensor = self.linear(self.pool(self.layer3(self.layer2(self.layer1(x)))))
        return logits


def _grouped_stage(inputs: int, outputs: int, count: int) -> nn.Sequential:
    first = _GroupedBlock(inputs, outputs - inputs, stride=2)
    return nn.Sequential(first, *(_GroupedBlock(outputs, outputs, stride=1) for _ in range(count - 1)))


class _GroupedBlock(nn.Module):
    """Narrow, shuffle, convolve each channel by itself, widen.

    At stride 1 the result is added to the input, at stride 2 it is set beside the input's average.
    """

    GROUPS = 3

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        middle = outputs // 4
        groups = 1 if inputs == 24 else self.GROUPS  # the stem has too few channels to split
        self.conv1 = nn.Conv2d(inputs, middle, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.shuffle1 = Shuffle(groups)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(middle, outputs, 1, groups=self.GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if stride == 1 else nn.AvgPool2d(3, stride=2, padding=1)
        self.join = Add() if stride == 1 else Concat()
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) → as many or more channels, at the size divided by the stride."""
        out = self.shuffle1(self.relu1(self.bn1(self.conv1(x))))
        out = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(out)))))
        joined: Tensor = self.relu3(self.join(out, self.shortcut(x)))
        return joined


class ShuffleNetV2(Model):
    """Half of the channels pass each block untouched, then all are shuffled; the published width 1.

    Ma, Zhang, Zheng and Sun, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", 2018.
    ``layer1``, ``layer2``, ``layer3`` are the stages. Weights start as PyTorch draws them.
    """

    class Config(ModelConfig):
        """Options of `shufflenetv2`."""

        kind: Literal["shufflenetv2"]

    STAGES = ((24, 116, 3), (116, 232, 7), (232, 464, 3))
    """Channels in, channels out and number of blocks after the one that halves the map."""
    LAST = 1024

    stages = ("layer1", "layer2", "layer3")
    pooled = "pool"
    head = "linear"

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, _, _ = picture(config.kind, shape)
        self.conv1 = nn.Conv2d(channels, 24, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.relu1 = nn.ReLU()
        self.layer1, self.layer2, self.layer3 = (_split_stage(*stage) for stage in self.STAGES)
        self.conv2 = nn.Conv2d(464, self.LAST, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(self.LAST)
        self.relu2 = nn.ReLU()
        self.pool = global_pool()
        self.linear = nn.Linear(self.LAST, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of pictures (B, K, H, W)."""
        x = self.layer3(self.layer2(self.layer1(self.relu1(self.bn1(self.conv1(x))))))
        logits: Tensor = self.linear(self.pool(self.relu2(self.bn2(self.conv2(x)))))
        return logits


def _split_stage(inputs: int, outputs: int, count: int) -> nn.Sequential:
    return nn.Sequential(_DownBlock(inputs, outputs), *(_SplitBlock(outputs) for _ in range(count)))


class _SplitBlock(nn.Module):
    """Convolutions on the second half of the channels; the first half passes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) → (B, D, H, W)."""
        passed, read = x.chunk(2, dim=1)
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(read)))))
        out = self.relu3(self.bn3(self.conv3(out)))
        shuffled: Tensor = self.shuffle(torch.cat((passed, out), dim=1))
        return shuffled


class _DownBlock(nn.Module):
    """Two branches that both halve the map, each giving half of the channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = nn.Conv2d(inputs, inputs, 3, stride=2, padding=1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu5 = nn.ReLU()
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) → (B, outputs, H / 2, W / 2)."""
        short = self.relu2(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        long = self.bn4(self.conv4(self.relu3(self.bn3(self.conv3(x)))))
        long = self.relu5(self.bn5(self.conv5(long)))
        shuffled: Tensor = self.shuffle(torch.cat((short, long), dim=1))
        return shuffled
