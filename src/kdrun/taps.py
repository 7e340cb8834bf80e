"""Looking into a model by layer name: what layers there are, and recording the outputs of some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdrun.errors import Mismatch, did_you_mean

CLASS_MAPS = "class_maps"
"""A layer that is none of the model's: its classifier, without the bias, at every place of its last stage."""


@dataclass(frozen=True)
class LayerTable:
    """A model's tappable layers, from one dry run.

    ``shapes`` are the outputs' without the batch, in the order in which the layers ran; ``stages``, ``pooled``,
    ``preactivations`` and ``norms`` are the names that the model gives for its stages, its embedding, and for each
    stage what its last ReLU gets and the BatchNorm before that.
    """

    owner: str
    shapes: dict[str, tuple[int, ...]]
    stages: tuple[str, ...]
    pooled: str
    preactivations: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()

    def resolve(self, layer: str, key: str) -> str:
        """The full name of a layer that a config names: its own, ``pooled`` or ``stage1``, ``stage2``, ….

        Raises ``Mismatch`` with the nearest name and the list of layers.
        """
        named = {"pooled": self.pooled} if self.pooled else {}
        named |= {f"stage{i}": name for i, name in enumerate(self.stages, start=1)}
        if layer in self.shapes:
            return layer
        if layer in named:
            return named[layer]
        raise Mismatch(
            f"{self.owner} has no layer '{layer}'",
            f"{did_you_mean(layer, [*self.shapes, *named], list_all=False)} "
            f"layers: {', '.join([*self.shapes, *(n for n in named if n not in self.shapes)])}".lstrip(),
            key,
        )


def describe(model: nn.Module, x: Tensor, owner: str) -> LayerTable:
    """The layers that ran on ``x`` and gave one tensor with a row a sample; the model's state is untouched."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim >= 2 and len(output) == len(x):
            shapes[name] = tuple(output.shape[1:])

    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: note(name, output))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with quiet(model):
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return LayerTable(
        owner,
        shapes,
        tuple(getattr(model, "stages", ())),
        getattr(model, "pooled", ""),
        tuple(getattr(model, "preactivations", ())),
        tuple(getattr(model, "norms", ())),
    )


class Recorder:
    """Keeps the outputs of some layers of a model; ``take`` hands over those of the last forward pass."""

    def __init__(self, model: nn.Module, layers: Iterable[str] = ()) -> None:
        self._model = model
        self._hooks: dict[str, int] = {}
        self._seen: dict[str, Tensor] = {}
        self.add(layers)

    def add(self, layers: Iterable[str]) -> None:
        """Record further layers."""
        for name in set(layers) - self._hooks.keys():

            def keep(_module: nn.Module, _inputs: object, output: Tensor, name: str = name) -> None:
                self._seen[name] = output

            self._hooks[name] = self._model.get_submodule(name).register_forward_hook(keep).id

    @property
    def layers(self) -> list[str]:
        """The layers that are recorded."""
        return list(self._hooks)

    def let_go_of(self, twin: nn.Module) -> None:
        """Take this recorder's hooks off a copy of the model, which would still write here."""
        for name, hook in self._hooks.items():
            twin.get_submodule(name)._forward_hooks.pop(hook, None)

    def take(self) -> dict[str, Tensor]:
        """The outputs of the last pass, by layer; nothing of the pass is kept."""
        seen, self._seen = self._seen, {}
        return seen


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Run a model in eval mode and without gradients, and leave every submodule's mode as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
