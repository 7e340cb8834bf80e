"""Networks as predictors: built, run with their layers tapped, and counted."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import flop_counter

from kdrun import registry, taps
from kdrun.contracts import Batch, Loss, Model, ModelConfig, Outputs, Predictor
from kdrun.eager import seen_to
from kdrun.memory import watched
from kdrun.models import int8
from kdrun.models.heads import Heads, choose_heads
from kdrun.models.lens import Lens, look_through
from kdrun.models.together import Combined
from kdrun.models.weights import read_state, start_from

seen_to(getattr(flop_counter, "_FlopCounterMode", None), "__torch_dispatch__")


def build(
    config: ModelConfig,
    shape: tuple[int, ...],
    classes: int,
    seed: int,
    through: Lens | None = None,
    origin: Mapping[str, Tensor] | None = None,
    heads: Heads | None = None,
) -> Model:
    """The model that a config names, for inputs of a ``shape`` without the batch, seen ``through`` a lens, on the CPU.

    With ``heads`` its classifier has all their outputs, and it answers by the one that is a sample's.

    Its weights are a function of ``seed``, unless they come from a file, or from the state of the finished ``origin``
    that it is made of; no global generator is changed. Raises ``Mismatch`` where the model cannot read such inputs,
    ``WeightsError`` where its file does not fit, and ``OutOfMemory``.
    """
    maker = registry.MODELS[config.kind]
    classes = classes if heads is None else heads.outputs
    with torch.random.fork_rng(devices=[]), watched():
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also change the GPUs'
        seen = shape if through is None else through.shape(shape)
        if maker.compresses:
            of: ModelConfig | None = getattr(config, "of", None)
            assert of is not None, "the config sees to it"
            made_of = build(of, seen, classes, seed)
            if origin is not None:
                made_of.load_state_dict(origin)
            model: Model = maker.made_of(config, made_of, torch.zeros(2, *seen))
        else:
            model = maker(config, seen, classes)
    model.made_from = config
    look_through(model, through)
    choose_heads(model, heads)
    if config.initial_weights is not None:
        start_from(model, read_state(config.initial_weights), str(config.initial_weights))
    return model


class Network:
    """A model that sees one view of a batch; a ``Predictor``.

    ``tap`` names the layers whose outputs come along as features, and further views. The mode (training or not) is
    the model's.
    """

    def __init__(self, model: Model, view: str, device: torch.device) -> None:
        self.model: Model = model.to(device)
        self.view, self.device = view, device
        self.further_views: dict[str, None] = {}
        self._recorder = taps.Recorder(model)
        self._made: dict[str, None] = {}

    def __call__(self, batch: Batch) -> Outputs:
        """Logits (B, C) in float32, and the tapped layers' outputs by name."""
        said = self.look(batch.views[self.view])
        if self.further_views:
            said = replace(said, views={view: self.look(batch.views[view]) for view in self.further_views})
        return said

    def look(self, x: Tensor) -> Outputs:
        """The outputs for inputs (B, …) of one view."""
        logits = self.model(x)
        seen = self._recorder.take()
        return Outputs(logits.float(), seen | made(self.model, self._made, seen))

    def tap(self, layers: Iterable[str], views: Iterable[str] = ()) -> None:
        """Give the outputs of further layers, by full name, and for further views, from now on."""
        wanted = dict.fromkeys(layers)
        self._made |= {layer: None for layer in wanted if source(self.model, layer) != layer}
        self._recorder.add(source(self.model, layer) for layer in wanted)
        self.further_views |= dict.fromkeys(views)

    @property
    def layers(self) -> list[str]:
        """The layers that are tapped."""
        return [*self._recorder.layers, *self._made]

    def dry(self, batch: Batch) -> Outputs:
        """The outputs in eval mode and without gradients; the model is left as it was."""
        with taps.quiet(self.model):
            return self(batch)

    def describe(self, batch: Batch, owner: str) -> taps.LayerTable:
        """The layers that can be tapped, with their shapes; the model is left as it was."""
        table = taps.describe(self.model, batch.views[self.view], owner)
        self._recorder.take()
        last = table.stages[-1] if table.stages else ""
        head = dict(self.model.named_modules()).get(self.model.head)
        if (
            isinstance(head, nn.Linear)
            and len(table.shapes.get(last, ())) == 3
            and self._averages(batch, last)
        ):
            table.shapes[taps.CLASS_MAPS] = (head.out_features, *table.shapes[last][1:])
        return table

    def _averages(self, batch: Batch, layer: str) -> bool:
        """Whether the embedding is the mean over places of a layer's maps."""
        recorder = taps.Recorder(self.model, [layer, self.model.pooled])
        self.dry(batch)
        seen = recorder.take()
        recorder.let_go_of(self.model)
        averaged, pooled = seen[layer].mean(dim=(2, 3)), seen[self.model.pooled]
        return averaged.shape == pooled.shape and torch.allclose(averaged, pooled, rtol=1e-3, atol=1e-6)

    def copied(self, model: Model, state: Mapping[str, Tensor]) -> Frozen:
        """A frozen copy of ``model``, the network's own or a ``Deployed`` of it, with other weights, without taps.

        What rounds in training is in int8 there.
        """
        twin = copy.deepcopy(model)
        self._recorder.let_go_of(twin if model is self.model else twin.get_submodule("body"))
        twin.load_state_dict(state)
        int8.finish_rounding(twin)
        return Frozen(twin, self.view, self.device)


class Deployed(Model):
    """A student whose logits come from parts of a loss: its body without the classifier, and those parts.

    Weights are shared with the student and the loss, which are left as they are. ``layers`` are those that the loss
    taps.
    """

    def __init__(self, model: Model, loss: Loss, layers: Iterable[str]) -> None:
        super().__init__()
        deepest, *_, pooled, head = (f"parts.{name}" for name in loss.at_inference)
        self.stages, self.pooled, self.head = (
            (*(f"body.{name}" for name in model.stages), deepest),
            pooled,
            head,
        )
        self.body, self.layers = _without(model, model.head), tuple(layers)
        self.parts: Loss = copy.copy(loss)
        self.parts._parameters, self.parts._buffers = {}, {}
        self.parts._modules = {name: loss.get_submodule(name) for name in loss.at_inference}

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C)."""
        recorder = taps.Recorder(self.body, {source(self.body, layer) for layer in self.layers})
        try:
            pooled, seen = self.body(x), recorder.take()
            return self.parts.predict(Outputs(pooled, seen | made(self.body, self.layers, seen)))
        finally:
            recorder.let_go_of(self.body)


def _without(module: nn.Module, name: str) -> nn.Module:
    """A twin that shares all submodules, with nothing done in place of the named one."""
    twin = copy.copy(module)
    first, _, rest = name.partition(".")
    replaced = _without(module.get_submodule(first), rest) if rest else nn.Identity()
    twin._modules = module._modules | {first: replaced}
    return twin


def source(model: nn.Module, layer: str) -> str:
    """The model's own layer that gives what a layer is made of; itself where it is one of the model's."""
    if layer == taps.CLASS_MAPS:
        stages: tuple[str, ...] = getattr(model, "stages", ())
        return stages[-1]
    return layer.partition(":")[0]


def made(model: nn.Module, layers: Iterable[str], seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of some layers that are none of the model's, from the outputs of its own."""
    return {
        layer: _made_of(seen[source(model, layer)], layer, model)
        for layer in layers
        if source(model, layer) != layer
    }


def _made_of(x: Tensor, layer: str, model: nn.Module) -> Tensor:
    assert isinstance(model, Model)
    if layer == taps.CLASS_MAPS:
        return class_maps(model, x)
    if layer.endswith(taps.AS_MAP):
        assert model.token_layout is not None
        return model.token_layout.as_map(x)
    return x.mean(dim=1) if x.ndim == 3 else x.mean(dim=(2, 3))


def class_maps(model: Model, features: Tensor) -> Tensor:
    """The model's classifier without its bias at every place of its last stage: (B, D, H, W) → (B, C, H, W)."""
    head = model.get_submodule(model.head)
    assert isinstance(head, nn.Linear)
    return F.conv2d(features, head.weight[:, :, None, None])


class Frozen(Network):
    """A network that nothing changes: a teacher.

    Its parameters take no gradients, and every pass runs in eval mode and under ``no_grad`` (not
    ``inference_mode``: losses save its outputs for their own gradients).
    """

    def __init__(self, model: Model, view: str, device: torch.device) -> None:
        super().__init__(model, view, device)
        model.requires_grad_(False).eval()

    @property
    def of_training(self) -> Predictor:
        """What is asked about training samples."""
        return self

    def __call__(self, batch: Batch) -> Outputs:
        """Logits (B, C) in float32, and the tapped layers' outputs by name, all without gradients."""
        self.model.eval()
        with torch.no_grad():
            return super().__call__(batch)


def parameters(model: nn.Module) -> int:
    """The number of parameters, frozen ones included and shared ones counted once; of a fitted model of all numbers."""
    if isinstance(model, Combined):
        return sum(parameters(member) for member in model.members)
    learnt = model.buffers() if getattr(model, "fitted", False) else model.parameters()
    return sum(numbers.numel() for numbers in learnt)


def zeros(model: nn.Module) -> int:
    """How many of the parameters are 0."""
    return sum(int((numbers == 0).sum()) for numbers in model.parameters())


def macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one sample of a ``shape`` without the batch, in eval mode.

    Those of matrix products, convolutions and attention, as they are published; normalisations and activations
    are not counted, nor is it how many of the weights are 0. Of members, by how often each is asked.
    """
    if isinstance(model, Combined):
        members = zip(model.members, model.asked, model.member_shapes(shape), strict=True)
        return round(sum(share * macs(member, seen) for member, share, seen in members))
    shadow = copy.deepcopy(model).requires_grad_(False).eval()
    for module in shadow.modules():
        if isinstance(module, int8.Int8Layer):
            module.in_floats = True  # operations that the counter knows
    device = next(iter(shadow.state_dict().values())).device
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation that the counter does not know
    in_products = sdpa_kernel(SDPBackend.MATH)  # nor does it know all those of attention in every torch
    try:
        with torch.no_grad(), in_products, flop_counter.FlopCounterMode(display=False) as counter:
            shadow(torch.zeros(1, *shape, device=device))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2
