"""Layers of a frozen network on a CPU together with the sum or the ReLU that follows, as one operation of oneDNN's.

Neither then costs a pass over memory of its own. Torch's compiler uses the same operations, which have no public names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdrun.models.layers import Add
from kdrun.models.tracing import Reader, hooked, only_readers


class Fused(nn.Module):
    """A convolution or linear layer, then the sum with another tensor (a convolution only) or a ReLU, or both."""

    def __init__(self, layer: nn.Module, relu: bool) -> None:
        super().__init__()
        self.layer: Any = layer
        self._relu = relu

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """(B, …) → the layer's outputs, with those of ``other``, of the same shape, added; without it, with a ReLU."""
        layer, operations = self.layer, torch.ops.mkldnn
        y: Tensor
        if isinstance(layer, nn.Linear):
            y = operations._linear_pointwise(x, layer.weight, layer.bias, "relu", [], "")
            return y
        given = (layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups)
        if other is None:
            y = operations._convolution_pointwise(x, *given, "relu", [], "")
        else:
            after = "relu" if self._relu else None
            y = operations._convolution_pointwise.binary(x, other, *given, "add", 1.0, after, [], "")
        return y


class Chain(NamedTuple):
    """A layer and what goes with it: the sum that reads it, or a ReLU that reads either, or both."""

    layer: str
    summed: str | None
    relu: str | None


def chains(model: nn.Module, x: Tensor, asked: Iterable[str]) -> frozenset[Chain]:
    """What can be fused, by running the model on ``x``, so that the outputs of the layers asked for stay."""
    modules, found = dict(model.named_modules()), set()
    readers = only_readers(model, x, {nn.Conv2d, nn.Linear, Add, nn.ReLU}, asked)
    for name, module in modules.items():
        if _fusible(module):
            summed = _follower(name, Add, modules, readers) if isinstance(module, nn.Conv2d) else None
            relu = _follower(summed or name, nn.ReLU, modules, readers)
            found |= {Chain(name, summed, relu)} if summed or relu else set()
    return frozenset(found)


def fuse(model: nn.Module, fused: Iterable[Chain]) -> None:
    """Put ``Fused`` layers in the places of chains, in the model itself."""
    for chain in fused:
        layer = model.get_submodule(chain.layer)
        for name in filter(None, (chain.layer, chain.relu)):
            model.set_submodule(name, nn.Identity())
        model.set_submodule(chain.summed or chain.layer, Fused(layer, chain.relu is not None))


def _fusible(module: nn.Module) -> bool:
    """Subclasses may do more than their bases and are left alone."""
    if hooked(module):
        return False
    if type(module) is nn.Conv2d:
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear


def _follower(
    layer: str, kind: type[nn.Module], modules: dict[str, nn.Module], readers: dict[str, Reader]
) -> str | None:
    """The layer of a kind that alone reads a layer's output, as its first input."""
    reader = readers.get(layer)
    if (
        reader is None
        or reader.place
        or type(modules[reader.layer]) is not kind
        or hooked(modules[reader.layer])
    ):
        return None
    return reader.layer
