"""A frozen network made ready to run often: the same outputs up to rounding, in as little time as can be had."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdrun.contracts import Arithmetic, Batch, Model, Outputs
from kdrun.memory import ran_out
from kdrun.models.network import Frozen, Network
from kdrun.taps import CLASS_MAPS, Recorder

AGREEMENT = 0.995
"""The share of predictions in which a teacher in bf16 has to agree with itself in fp32."""
CLOSE = 1e-3
"""How far the outputs of a folded network may be from those of the network, relative to their size."""

FOLDS = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Linear: nn.BatchNorm1d}
"""Which layer takes up which BatchNorm; subclasses may do more than their bases and are left alone."""


class Prepared(Network):
    """A copy of a frozen network that gives the outputs of some layers, for one kind of arithmetic.

    Each BatchNorm is folded into the convolution or linear layer whose output it alone reads, unless that output is
    asked for; weights lie channels_last. ``bf16`` computes in bf16 throughout where that agrees with fp32 in
    ``AGREEMENT`` of the predictions for ``sample``, and under autocast otherwise; ``arithmetic`` says which.
    """

    def __init__(
        self, teacher: Frozen, layers: Iterable[str], views: Iterable[str], bf16: bool, sample: Batch
    ) -> None:
        layers = set(layers)
        with torch.no_grad():
            model = folded(teacher, layers - {CLASS_MAPS}, sample)
            super().__init__(model.to(memory_format=torch.channels_last), teacher.view, teacher.device)
            self.arithmetic: Arithmetic = "fp32"
            if bf16:
                self._take_bf16(sample)
        self.tap(layers, views)

    def __call__(self, batch: Batch) -> Outputs:
        """Logits (B, C) and the layers' outputs in float32, without gradients."""
        autocast = self.arithmetic == "bf16 autocast"
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            return super().__call__(batch)

    def look(self, x: Tensor) -> Outputs:
        """The outputs in float32 for inputs (B, …) of one view."""
        said = super().look(x.bfloat16() if self.arithmetic == "bf16" else x)
        return replace(said, features={name: feature.float() for name, feature in said.features.items()})

    def _take_bf16(self, sample: Batch) -> None:
        exact, whole = self(sample).logits.argmax(dim=1), copy.deepcopy(self.model.state_dict())
        self.model.bfloat16()
        self.arithmetic = "bf16"
        try:
            agreed = bool((self(sample).logits.argmax(dim=1) == exact).float().mean() >= AGREEMENT)
        except RuntimeError as error:  # some operation that does not know bf16
            if ran_out(error):
                raise
            agreed = False
        if not agreed:
            self.model.float().load_state_dict(whole)
            self.arithmetic = "bf16 autocast"


def folded(network: Network, layers: Iterable[str], sample: Batch) -> Model:
    """A copy of a network's model with its BatchNorms folded, or without where that changes an output."""
    layers, x = sorted(layers), sample.views[network.view]
    whole, model = (network.copied(network.model, network.model.state_dict()).model for _ in range(2))
    for layer, norm in foldable(model, x[:2]).items():
        if layer not in layers:
            _fold(model, layer, norm)
    before, after = (_outputs(m, layers, x) for m in (whole, model))
    close = all((a - b).norm() <= CLOSE * b.norm() for a, b in zip(after, before, strict=True))
    return model if close else whole


def foldable(model: nn.Module, x: Tensor) -> dict[str, str]:
    """The layers whose output a BatchNorm and nothing else reads, with its name; by running the model on ``x``."""
    modules, reads = dict(model.named_modules()), _Reads()
    runs: dict[str, int] = {}
    pairs: list[tuple[Tensor, str, str]] = []

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        runs[name] = runs.get(name, 0) + 1
        if type(module) in FOLDS:
            reads.watch(output, name)
        elif (layer := reads.maker_of(inputs[0])) and type(module) is FOLDS[type(modules[layer])]:
            pairs.append((inputs[0], layer, name))

    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: note(name, m, i, o))
        for name, module in modules.items()
        if type(module) in {*FOLDS, *FOLDS.values()}
    ]
    try:
        with reads:
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return {
        layer: norm
        for tensor, layer, norm in pairs
        if runs[layer] == runs[norm] == reads.of(tensor) == 1
        and getattr(modules[norm], "running_mean", None) is not None
    }


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
        self._made[id(output)] = output, layer

    def maker_of(self, tensor: Tensor) -> str | None:
        """The layer whose output it is."""
        return self._made[id(tensor)][1] if id(tensor) in self._made else None

    def of(self, tensor: Tensor) -> int:
        """How many operations read it."""
        return self._count.get(id(tensor), 0)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if id(tensor) in self._made:
                self._count[id(tensor)] = self._count.get(id(tensor), 0) + 1
        return function(*args, **(kwargs or {}))


def _fold(model: nn.Module, layer: str, norm: str) -> None:
    module: Any = model.get_submodule(layer)
    fuse: Any = fuse_linear_bn_eval if isinstance(module, nn.Linear) else fuse_conv_bn_eval
    model.set_submodule(layer, fuse(module, model.get_submodule(norm)))
    model.set_submodule(norm, nn.Identity())


def _outputs(model: nn.Module, layers: Iterable[str], x: Tensor) -> list[Tensor]:
    recorder = Recorder(model, layers)
    logits = model(x)
    seen = recorder.take()
    recorder.let_go_of(model)
    return [logits, *(seen[name] for name in layers)]
