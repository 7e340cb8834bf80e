"""A model that kdrun does not have, as a plugin: the teacher of work C."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from kdrun.contracts import Model, ModelConfig
from kdrun.errors import Mismatch


class MnistCnn(Model):
    """The network of PyTorch's MNIST example, without its dropout: 1.2 million parameters for 28×28 pictures."""

    class Config(ModelConfig):
        """Options of `mnist-cnn`: none of its own."""

        kind: Literal["mnist-cnn"]

    stages, pooled, head = ("body.1", "body.3"), "hidden", "classifier"

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        if len(shape) != 3 or min(shape[1:]) < 6:
            raise Mismatch("mnist-cnn reads pictures of at least 6×6 pixels", "use mlp", "kind")
        channels, height, width = shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)
        )
        flat = 64 * ((height - 4) // 2) * ((width - 4) // 2)
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(flat, 128), nn.ReLU())
        self.classifier = nn.Linear(128, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of pictures (B, K, H, W)."""
        logits: Tensor = self.classifier(self.hidden(self.body(x)))
        return logits
