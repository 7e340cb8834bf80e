"""What brings a student's features to the form of a teacher's.

Weights are drawn by torch's default initialisation: whoever calls ``Loss.build`` sets the seed for it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.losses.numerics import full, unit

Shape = tuple[int, ...]


class MapRegressor(nn.Module):
    """ReLU(BN(conv(f))): a student's map (B, D, H, W) to the teacher's channels and, where it can, size.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", 2015. The ReLU stands at the end because the
    teacher's maps come after one; without ``relu`` it is left out.
    """

    def __init__(self, student: Shape, teacher: Shape, relu: bool = True) -> None:
        super().__init__()
        self.conv = _convolution(student, teacher)
        self.bn = nn.BatchNorm2d(teacher[0])
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """The regressed map (B, C_t, H, W)."""
        regressed: Tensor = self.bn(self.conv(x))
        return F.relu(regressed) if self.relu else regressed


def pointwise(student: Shape, teacher: Shape, norm: bool = True, bias: bool = False) -> nn.Sequential:
    """A layer from the student's width to the teacher's, at each place by itself, normalised where asked for.

    Maps (D, H, W) get a 1×1 convolution, vectors (D,) a linear layer.
    """
    maps = len(student) == 3
    layer = (
        nn.Conv2d(student[0], teacher[0], 1, bias=bias) if maps else nn.Linear(student[0], teacher[0], bias)
    )
    normalised = nn.BatchNorm2d(teacher[0]) if maps else nn.BatchNorm1d(teacher[0])
    return nn.Sequential(layer, *([normalised] if norm else []))


def bottleneck(student: int, middle: int, teacher: int, last_norm: bool) -> nn.Sequential:
    """1×1, 3×3 and 1×1 convolutions of maps, with BatchNorm and ReLU between them, and at the end if asked for."""
    layers: list[nn.Module] = []
    for inputs, outputs, size in ((student, middle, 1), (middle, middle, 3), (middle, teacher, 1)):
        layers += [nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*(layers if last_norm else layers[:-2]))


class Embedding(nn.Module):
    """A linear layer from vectors (B, D) to unit vectors (B, E)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """The embedded vectors, each of length 1."""
        return unit(full(self.linear(x)))


def regressor(student: Shape, teacher: Shape, relu: bool = True) -> nn.Module:
    """A learned map from student to teacher features, of shapes without the batch and of one form.

    Maps (D, H, W) get a ``MapRegressor``; vectors (D,) and token sequences (T, D) a linear layer.
    """
    maps = len(student) == 3
    return MapRegressor(student, teacher, relu) if maps else nn.Linear(student[-1], teacher[-1])


def to_smaller(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B, ·, H, W), each averaged down to the smaller height and width of the two."""
    height, width = (min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))
    return pool(student, height, width), pool(teacher, height, width)


def pool(x: Tensor, height: int, width: int) -> Tensor:
    """Maps (B, D, ·, ·) averaged to (B, D, height, width), by cells that may overlap where they do not divide."""
    if x.shape[2:] == (height, width):
        return x
    if x.shape[2] % height == 0 and x.shape[3] % width == 0:
        # The same value as below, and unlike it deterministic in the backward pass on CUDA.
        return F.avg_pool2d(x, (x.shape[2] // height, x.shape[3] // width))
    return F.adaptive_avg_pool2d(x, (height, width))


def _convolution(student: Shape, teacher: Shape) -> nn.Module:
    (narrow, *sizes), (wide, *wanted) = student, teacher
    ratios = list(zip(sizes, wanted, strict=True))
    if all(s == 2 * t for s, t in ratios):
        return nn.Conv2d(narrow, wide, 3, stride=2, padding=1)
    if all(2 * s == t for s, t in ratios):
        return nn.ConvTranspose2d(narrow, wide, 4, stride=2, padding=1)
    if all(s >= t for s, t in ratios):
        height, width = (1 + s - t for s, t in ratios)
        return nn.Conv2d(narrow, wide, (height, width))
    return nn.Conv2d(narrow, wide, 3, padding=1)
