"""VGG networks with batch normalisation for small pictures, as the distillation literature uses them.

Parameters are named as in the reference code of "Contrastive Representation Distillation", so that weights
trained elsewhere fit.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from kdrun.contracts import Model, ModelConfig
from kdrun.models.layers import global_pool, he_normal, picture, small_normal

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
"""How many convolutions each of the five blocks has."""


class VGG(Model):
    """Plain stacks of 3×3 convolutions with a linear classifier, for pictures of 8×8 to 64×64 pixels.

    Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015. The
    picture is halved after each of the first three blocks, and from 64 pixels on after the fourth. The stages
    are the ReLUs that end blocks 1 to 4; ``block1``, … are the maps before them.
    """

    class Config(ModelConfig):
        """Options of the VGG networks."""

        kind: Literal["vgg8", "vgg11", "vgg13", "vgg16", "vgg19"]

    stages = ("relu1", "relu2", "relu3", "relu4")
    preactivations = ("block1", "block2", "block3", "block4")
    pooled = "pool"
    head = "classifier"

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = picture(config.kind, shape, least=8)
        halved = 4 if min(height, width) >= 64 else 3
        counts = CONVOLUTIONS[config.kind]
        for i, (pair, count) in enumerate(zip(pairwise((channels, *WIDTHS)), counts, strict=True)):
            self.add_module(f"block{i}", _block(*pair, count))
            self.add_module(f"relu{i}", nn.ReLU())
            self.add_module(f"pool{i}", nn.MaxPool2d(2) if i < halved else nn.Identity())
        self.norms = tuple(f"block{i}.{3 * count - 2}" for i, count in enumerate(counts) if i)
        self.pool = global_pool()
        self.classifier = nn.Linear(WIDTHS[-1], classes)
        he_normal(self)
        small_normal(self.classifier)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of pictures (B, K, H, W)."""
        for i in range(len(WIDTHS)):
            for part in ("block", "relu", "pool"):
                x = self.get_submodule(f"{part}{i}")(x)
        logits: Tensor = self.classifier(self.pool(x))
        return logits


def _block(inputs: int, outputs: int, count: int) -> nn.Sequential:
    """Convolutions, each normalised, with ReLUs between them but none at the end."""
    layers: list[nn.Module] = []
    for i in range(count):
        layers += [nn.ReLU()] if i else []
        layers += [nn.Conv2d(outputs if i else inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers)
