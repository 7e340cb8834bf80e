"""A frozen network made ready to run often: the same outputs up to rounding, in as little time as can be had."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from kdrun.contracts import Arithmetic, Batch, Model, Outputs
from kdrun.memory import ran_out
from kdrun.models.fused import Chain, chains, fuse
from kdrun.models.network import Frozen, Network, source
from kdrun.models.replayed import Replayed
from kdrun.models.tracing import hooked, only_readers
from kdrun.taps import Recorder

AGREEMENT = 0.995
"""The share of predictions in which a teacher in bf16 has to agree with itself in fp32."""
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""How far the outputs of a changed network may be from those of the network, relative to their size."""
FEW = 32
"""Samples on which they are compared."""

FOLDS = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Linear: nn.BatchNorm1d}
"""Which layer takes up which BatchNorm; subclasses may do more than their bases and are left alone."""
DIMENSIONS = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Linear: 2}
"""Of an output whose second dimension is the layer's own."""


@dataclass(frozen=True)
class Recipe:
    """What is done to a copy of a network, so that it is fast and says the same.

    ``folds`` are layers with the BatchNorms that they take up, ``chains`` what is fused.
    """

    folds: frozenset[tuple[str, str]]
    chains: frozenset[Chain]
    arithmetic: Arithmetic


def recipe(teacher: Frozen, layers: Iterable[str], bf16: bool, sample: Batch) -> Recipe:
    """How to prepare a network, of which some layers are asked for, for one kind of arithmetic; by running copies.

    Each BatchNorm is folded into the convolution or linear layer whose output it alone reads, unless that output is
    asked for, and on a CPU sums and ReLUs go with the layers before them; neither where it changes an output. What
    the model names as preactivations stays for all, so that losses on them need no teacher of their own.
    ``bf16`` computes in bf16 throughout where that agrees with fp32 in ``AGREEMENT`` of the predictions for
    ``sample``, and under autocast otherwise.
    """
    asked = frozenset(source(teacher.model, layer) for layer in layers)
    kept, x = asked.union(teacher.model.preactivations), sample.views[teacher.view]
    with torch.no_grad():
        model = _copied(teacher)
        folds = frozenset(foldable(model, x[:2], asked).items())
        folded = copy.deepcopy(model)
        fold(folded, folds)
        if _alike(folded, model, asked, x[:FEW]):
            model = folded
        else:
            folds = frozenset()
        if not bf16:
            return Recipe(folds, _harmless(model, kept, x[:FEW]), "fp32")
        rounded, y = copy.deepcopy(model).bfloat16(), x.bfloat16()
        try:
            found = _harmless(rounded, kept, y[:FEW])
            fuse(rounded, found)
            agreed = bool((_predicted(rounded, y) == _predicted(model, x)).float().mean() >= AGREEMENT)
        except RuntimeError as error:  # some operation that does not know bf16
            if ran_out(error):
                raise
            agreed = False
    return Recipe(folds, found, "bf16") if agreed else Recipe(folds, frozenset(), "bf16 autocast")


class Prepared(Network):
    """A copy of a frozen network made by a recipe for the layers that it is to give, its weights channels_last.

    On a GPU its passes are recorded and replayed. All layers are asked for when it is made.
    """

    def __init__(
        self, teacher: Frozen, how: Recipe, layers: Iterable[str], views: Iterable[str] = ()
    ) -> None:
        model, self.arithmetic = _copied(teacher), how.arithmetic
        with torch.no_grad():
            fold(model, how.folds)
            if how.arithmetic == "bf16":
                model.bfloat16()
            fuse(model, how.chains)
        super().__init__(model, teacher.view, teacher.device)
        self.tap(layers, views)
        self._pass = Replayed(super().look) if teacher.device.type == "cuda" else super().look

    def __call__(self, batch: Batch) -> Outputs:
        """Logits (B, C) and the layers' outputs in float32, without gradients."""
        autocast = self.arithmetic == "bf16 autocast"
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=autocast):
            return super().__call__(batch)

    def look(self, x: Tensor) -> Outputs:
        """The outputs in float32 for inputs (B, …) of one view."""
        said = self._pass(x.bfloat16() if self.arithmetic == "bf16" else x)
        return replace(said, features={name: feature.float() for name, feature in said.features.items()})


def foldable(model: nn.Module, x: Tensor, asked: Iterable[str] = ()) -> dict[str, str]:
    """The layers whose output a BatchNorm and nothing else reads, with its name; by running the model on ``x``."""
    modules = dict(model.named_modules())
    return {
        layer: reader.layer
        for layer, reader in only_readers(model, x, {*FOLDS, *FOLDS.values()}, asked).items()
        if FOLDS.get(type(modules[layer])) is type(modules[reader.layer])
        and DIMENSIONS[type(modules[layer])] == reader.dimensions
        and getattr(modules[reader.layer], "running_mean", None) is not None
        and not (hooked(modules[layer]) or hooked(modules[reader.layer]))
    }


def fold(model: nn.Module, folds: Iterable[tuple[str, str]]) -> None:
    """Have layers take up BatchNorms, in the model itself."""
    for layer, norm in folds:
        module: Any = model.get_submodule(layer)
        fuse_norm: Any = fuse_linear_bn_eval if isinstance(module, nn.Linear) else fuse_conv_bn_eval
        model.set_submodule(layer, fuse_norm(module, model.get_submodule(norm)))
        model.set_submodule(norm, nn.Identity())


def _copied(teacher: Frozen) -> Model:
    model = teacher.copied(teacher.model, teacher.model.state_dict()).model
    return model.to(memory_format=torch.channels_last)


def _harmless(model: Model, asked: Iterable[str], x: Tensor) -> frozenset[Chain]:
    """What can be fused without changing an output; nothing where torch lacks the operations."""
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return frozenset()
    fused = copy.deepcopy(model)
    found = chains(fused, x[:2], asked)
    try:
        fuse(fused, found)
        return found if _alike(fused, model, asked, x) else frozenset()
    except (AttributeError, RuntimeError) as error:
        if ran_out(error):
            raise
        return frozenset()


def _predicted(model: Model, x: Tensor) -> Tensor:
    """The classes (B,), a few samples at a time: memory is for the training's own batches."""
    return torch.cat([model(some).argmax(dim=1) for some in x.split(FEW)])


def _alike(made: Model, model: Model, asked: Iterable[str], x: Tensor) -> bool:
    """Whether two models say the same of ``x``, up to rounding."""
    pairs = zip(_outputs(made, asked, x), _outputs(model, asked, x), strict=True)
    return all((a - b).norm() <= CLOSE[x.dtype] * b.norm() for a, b in pairs)


def _outputs(model: nn.Module, layers: Iterable[str], x: Tensor) -> list[Tensor]:
    recorder = Recorder(model, layers)
    logits = model(x)
    seen = recorder.take()
    recorder.let_go_of(model)
    return [logits, *(seen[name] for name in layers)]
