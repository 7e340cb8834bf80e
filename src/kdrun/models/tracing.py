"""Who reads what inside a model, found by running it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Reader(NamedTuple):
    """The layer that reads another's output, which of its inputs that is, and how many dimensions that has."""

    layer: str
    place: int
    dimensions: int


def only_readers(
    model: nn.Module, x: Tensor, kinds: Iterable[type[nn.Module]], asked: Iterable[str] = ()
) -> dict[str, Reader]:
    """For each layer whose output one other layer and nothing else reads, that one; by running the model on ``x``.

    Only layers of some ``kinds`` are looked at, and only those that run once; to be ``asked`` for is to be read.
    """
    modules, wanted, reads = dict(model.named_modules()), set(kinds), _Reads()
    runs: dict[str, int] = {}
    found: list[tuple[str, Reader, Tensor, int | None]] = []

    def note(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        runs[name] = runs.get(name, 0) + 1
        for place, tensor in enumerate(inputs):
            if maker := reads.maker_of(tensor):
                # What reads a tensor later that was changed in place reads what became of it.
                in_place = reads.of(tensor) if output is tensor else None
                found.append((maker, Reader(name, place, tensor.ndim), tensor, in_place))
        reads.watch(output, name)

    def hooks() -> Iterable[Any]:
        for name, module in modules.items():
            if type(module) in wanted:
                yield module.register_forward_hook(lambda _, i, o, name=name: note(name, i, o))
        for name in asked:
            yield modules[name].register_forward_hook(lambda _, __, output: reads.add(output))

    handles = list(hooks())
    try:
        with torch.no_grad(), reads:
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return {
        maker: reader
        for maker, reader, tensor, in_place in found
        if runs[maker] == runs[reader.layer] == 1
        and (reads.of(tensor) if in_place is None else in_place) == 1
    }


def hooked(module: nn.Module) -> bool:
    """Whether something is done before or after a layer runs, which would be lost with it."""
    return bool(module._forward_pre_hooks or module._forward_hooks)


class _Reads(TorchDispatchMode):
    """How often operations read the outputs of some layers."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[Tensor, str]] = {}  # with the tensor, or another could get its id
        self._count: dict[int, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch loads its compiler to skip it

    def watch(self, output: Tensor, layer: str) -> None:
        """Count what reads a layer's output from now on."""
        self._made[id(output)], self._count[id(output)] = (output, layer), 0

    def add(self, output: Any) -> None:
        """Something beside an operation reads an output."""
        self._count[id(output)] = self.of(output) + 1

    def maker_of(self, tensor: Any) -> str | None:
        """The layer whose output it is."""
        return self._made[id(tensor)][1] if id(tensor) in self._made else None

    def of(self, tensor: Any) -> int:
        """How many operations read it."""
        return self._count.get(id(tensor), 0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if id(tensor) in self._made:
                self._count[id(tensor)] += 1
        return function(*args, **(kwargs or {}))
