"""Looking into a model by layer name: what layers there are, and recording the outputs of some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kdrun.errors import Mismatch, did_you_mean

CLASS_MAPS = "class_maps"
"""A layer that is none of the model's: its classifier, without the bias, at every place of its last stage."""
AS_MAP, AS_MEAN = ":map", ":mean"
"""Behind a layer's name: its tokens laid out as a map, its mean over tokens or over the places of its map."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tokens of a sequence (T, D) come from: the first ``learned`` ones from nowhere, the rest row by row.

    ``grid`` is the height and width of the map that these are laid out as.
    """

    learned: int
    grid: tuple[int, int]

    def __len__(self) -> int:
        height, width = self.grid
        return self.learned + height * width

    def as_map(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, D) → their map (B, D, H, W), without the learned ones."""
        return tokens[:, self.learned :].transpose(1, 2).unflatten(2, self.grid)


@dataclass(frozen=True)
class LayerTable:
    """A model's tappable layers, from one dry run.

    ``shapes`` are the outputs' without the batch, in the order in which the layers ran; ``stages``, ``pooled``,
    ``preactivations`` and ``norms`` are the names that the model gives for its stages, its embedding, and for each
    stage what its last ReLU gets and the BatchNorm before that. ``layout`` is its tokens', ``attentions`` are its
    layers that give queries, keys and values, with their numbers of heads.
    """

    owner: str
    shapes: dict[str, tuple[int, ...]]
    stages: tuple[str, ...]
    pooled: str
    preactivations: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    layout: Layout | None = None
    attentions: Mapping[str, int] = field(default_factory=dict)

    @property
    def own(self) -> list[str]:
        """The names of the layers, without what was made of some."""
        return [name for name in self.shapes if ":" not in name]

    def as_map(self, layer: str) -> str:
        """The layer that gives a layer's tokens as a map, where it gives tokens and their places are known."""
        shape = self.shapes[layer]
        if len(shape) != 2 or self.layout is None or len(self.layout) != shape[0]:
            return layer
        return self._made(layer + AS_MAP, (shape[1], *self.layout.grid))

    def as_mean(self, layer: str) -> str:
        """The layer that gives a layer's mean over tokens or places; of vectors it is the layer itself."""
        shape = self.shapes[layer]
        if len(shape) not in (2, 3):
            return layer
        return self._made(layer + AS_MEAN, (shape[-1] if len(shape) == 2 else shape[0],))

    def _made(self, name: str, shape: tuple[int, ...]) -> str:
        self.shapes[name] = shape
        return name

    def resolve(self, layer: str, key: str) -> str:
        """The full name of a layer that a config names: its own, ``pooled`` or ``stage1``, ``stage2``, ….

        Any of them with ``:map`` or ``:mean`` behind it where that can be made of it.

        Raises ``Mismatch`` with the nearest name and the list of layers.
        """
        named = {"pooled": self.pooled} if self.pooled else {}
        named |= {f"stage{i}": name for i, name in enumerate(self.stages, start=1)}
        if layer in self.shapes:
            return layer
        if layer in named:
            return named[layer]
        for ending, make in ((AS_MAP, self.as_map), (AS_MEAN, self.as_mean)):
            if layer.endswith(ending):
                made = make(self.resolve(layer.removesuffix(ending), key))
                if made.endswith(ending):
                    return made
                raise Mismatch(
                    f"layer '{made}' of {self.owner} gives {self.shapes[made]}, of which no {ending[1:]} is made",
                    f"write '{made}', or another layer",
                    key,
                )
        known = list(dict.fromkeys([*self.own, *named]))
        near = [name + ending for name in known for ending in ((AS_MAP, AS_MEAN) if ":" in layer else ("",))]
        raise Mismatch(
            f"{self.owner} has no layer '{layer}'",
            f"{did_you_mean(layer, near, list_all=False)} layers: {', '.join(known)}".lstrip(),
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
        getattr(model, "token_layout", None),
        getattr(model, "attentions", {}),
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
