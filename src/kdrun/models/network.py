"""Networks as predictors: built, run with their layers tapped, and counted."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kdrun import registry, taps
from kdrun.contracts import Batch, Model, ModelConfig, Outputs
from kdrun.models.weights import read_state, start_from


def build(config: ModelConfig, shape: tuple[int, ...], classes: int, seed: int) -> Model:
    """The model that a config names, for inputs of a ``shape`` without the batch, on the CPU.

    Its weights are a function of ``seed``, unless they come from a file; no global generator is changed. Raises
    ``Mismatch`` where the model cannot read such inputs and ``WeightsError`` where its file does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also change the GPUs'
        model: Model = registry.MODELS[config.kind](config, shape, classes)
    if config.initial_weights is not None:
        start_from(model, read_state(config.initial_weights), str(config.initial_weights))
    return model


class Network:
    """A model that sees one view of a batch; a ``Predictor``.

    ``tap`` names the layers whose outputs come along as features. The mode (training or not) is the model's.
    """

    def __init__(self, model: Model, view: str, device: torch.device) -> None:
        self.model: Model = model.to(device)
        self.view, self.device = view, device
        self._recorder = taps.Recorder(model)

    def __call__(self, batch: Batch) -> Outputs:
        """Logits (B, C) in float32, and the tapped layers' outputs by name."""
        logits = self.model(batch.views[self.view])
        return Outputs(logits.float(), self._recorder.take())

    def tap(self, layers: Iterable[str]) -> None:
        """Give the outputs of further layers, by full name, from now on."""
        self._recorder.add(layers)

    def dry(self, batch: Batch) -> Outputs:
        """The outputs in eval mode and without gradients; the model is left as it was."""
        with taps.quiet(self.model):
            return self(batch)

    def describe(self, batch: Batch, owner: str) -> taps.LayerTable:
        """The layers that can be tapped, with their shapes; the model is left as it was."""
        table = taps.describe(self.model, batch.views[self.view], owner)
        self._recorder.take()
        return table

    def with_state(self, state: Mapping[str, Tensor]) -> Frozen:
        """A copy with other weights, without taps, for scoring."""
        model = copy.deepcopy(self.model)
        self._recorder.let_go_of(model)
        model.load_state_dict(state)
        return Frozen(model, self.view, self.device)


class Frozen(Network):
    """A network that nothing changes: a teacher.

    Its parameters take no gradients, and every pass runs in eval mode and under ``no_grad`` (not
    ``inference_mode``: losses save its outputs for their own gradients).
    """

    def __init__(self, model: Model, view: str, device: torch.device) -> None:
        super().__init__(model, view, device)
        model.requires_grad_(False).eval()

    def __call__(self, batch: Batch) -> Outputs:
        """Logits (B, C) in float32, and the tapped layers' outputs by name, all without gradients."""
        self.model.eval()
        with torch.no_grad():
            return super().__call__(batch)


def parameters(model: nn.Module) -> int:
    """The number of parameters, frozen ones included and shared ones counted once."""
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one sample of a ``shape`` without the batch, in eval mode.

    Those of matrix products, convolutions and attention, as they are published; normalisations and activations
    are not counted. Nothing is computed: the pass runs on tensors without storage.
    """
    shadow = copy.deepcopy(model).to("meta").requires_grad_(False).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shadow(torch.empty(1, *shape, device="meta"))
    return int(counter.get_total_flops()) // 2
