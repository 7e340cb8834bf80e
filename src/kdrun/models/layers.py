"""Parts that several families share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdrun.errors import Mismatch


def picture(kind: str, shape: tuple[int, ...], least: int = 1) -> tuple[int, int, int]:
    """The input's channels, height and width.

    Raises ``Mismatch`` where it is no picture, or has fewer than ``least`` pixels a side.
    """
    said = "×".join(str(size) for size in shape)
    if len(shape) != 3:
        raise Mismatch(
            f"'{kind}' reads pictures (channels, height, width), and these inputs are {said}",
            "use mlp or gru, which read any input",
            "kind",
        )
    if min(shape[1:]) < least:
        raise Mismatch(
            f"'{kind}' halves its input until fewer than {least} pixels a side leave nothing; these inputs are {said}",
            "use a resnet, wrn or cnn, which read pictures of any size",
            "kind",
        )
    channels, height, width = shape
    return channels, height, width


def he_normal(model: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / fan-out) and set its bias to zero.

    He, Zhang, Ren and Sun, "Delving Deep into Rectifiers", 2015.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_normal(linear: nn.Linear) -> None:
    """Draw a classifier from N(0, 0.01²) and set its bias to zero."""
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)


def global_pool() -> nn.Sequential:
    """Maps (B, D, H, W) → their means (B, D)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Add(nn.Module):
    """The sum of two branches: a module of its own, so that what enters a block's last ReLU can be tapped."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Two tensors of one shape → their sum."""
        return x + y


class Concat(nn.Module):
    """Two branches side by side in the channels; like ``Add``, so that they can be tapped."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, D, H, W) and (B, E, H, W) → (B, D + E, H, W)."""
        return torch.cat((x, y), dim=1)


class Shuffle(nn.Module):
    """Deals the channels of ``groups`` equal groups out in turn, so that each group sees all others next."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) → the same channels in another order."""
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class Pick(nn.Module):
    """One place of a sequence: the last step, or the class token."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, D)."""
        return x[:, self.place]
