"""Networks of torchvision and timm; behind ``net.``, their layers and weights keep those libraries' names."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from kdrun import taps
from kdrun.contracts import Model, ModelConfig
from kdrun.errors import Mismatch, WeightsError, did_you_mean
from kdrun.machine import raise_lack
from kdrun.models.layers import picture
from kdrun.models.lens import Normalization
from kdrun.models.weights import start_from

SHRINK = 1.5
"""How many times smaller a map must be for a new stage to begin: convolutions without padding take off less."""


class ExternalConfig(ModelConfig):
    """Options of the networks of other libraries."""

    name: str = "resnet18"
    """the network's name in its library"""
    pretrained: bool = False
    """start from published weights, which are downloaded once; the classifier is new where the classes differ"""

    @property
    def published(self) -> Normalization | None:
        """By what the published weights, if they are asked for, want their inputs normalised."""
        if not self.pretrained:
            return None
        figures = self._published_figures()
        mean, std = (list(getattr(figures, key, None) or ()) for key in ("mean", "std"))
        return Normalization(mean=mean, std=std) if mean and std else None

    def _published_figures(self) -> Any:
        """What has their ``mean`` and ``std``."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.pretrained and self.initial_weights is not None:
            raise ValueError("`pretrained: true` and `initial_weights` exclude each other; keep one of them")
        return self


class External(Model):
    """A network of another library.

    The stages are ``layer1`` to ``layer4`` where it has them, else its blocks (transformers) or the last block
    at each size of its maps. ``embedding`` is what the classifier reads, as vectors (B, D).
    """

    PREFIX = "net."

    pooled = "embedding"

    def __init__(
        self, make: Callable[[], nn.Module], shape: tuple[int, ...], classes: int, said: str
    ) -> None:
        super().__init__()
        try:
            self.net = make()
            for module in self.net.modules():
                if hasattr(module, "inplace"):
                    module.inplace = False  # type: ignore[assignment]  # a flag, though undeclared
            outputs, overwritten = _dry_run(self.net, self.see(torch.zeros(2, *shape)))
        except Exception as error:  # what a library cannot build or read, it tells in any way
            raise_lack(error)
            size = "×".join(str(pixels) for pixels in shape)
            reason = str(error).partition("\n")[0]
            raise Mismatch(f"{said} cannot read inputs of {size}: {reason}", key="name") from error
        for name in overwritten:
            _shield(self.net.get_submodule(name))
        head = self._find_classifier(outputs, classes, said)
        self.head = self.PREFIX + head
        self.stages = tuple(self.PREFIX + name for name in _stages(self.net, outputs, head))
        self.token_layout = _layout(self.net)
        self.attentions = {
            self.PREFIX + name: heads for name, heads in _attentions(self.net, outputs).items()
        }

    def _find_classifier(self, outputs: dict[str, Tensor], classes: int, said: str) -> str:
        """The last layer that gives a number a class; what it reads is tapped."""
        named = ((name, self.net.get_submodule(name)) for name in reversed(outputs))
        found = next(((name, module) for name, module in named if _width(module) == classes), None)
        if found is None:
            raise Mismatch(f"{said} has no linear classifier", "choose another network", "name")
        name, module = found
        self.embedding = _Mean(-1 if isinstance(module, nn.Linear) else 1)
        module.register_forward_pre_hook(self._embed)
        return name

    def _embed(self, _classifier: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.embedding(inputs[0])

    def see(self, x: Tensor) -> Tensor:
        """What the network is shown of an input."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, C) of pictures (B, K, H, W)."""
        logits: Tensor = self.net(self.see(x))
        return logits

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights under the library's names → under this model's; kdrun's own files stay as they are."""
        if any(name.startswith(self.PREFIX) for name in state):
            return dict(state)
        return {self.PREFIX + name: value for name, value in state.items()}


class Torchvision(External):
    """A classifier of torchvision, by name.

    It reads three channels: grey pictures are shown to it three times over. Weights may also come from a local
    file by `initial_weights`.
    """

    class Config(ExternalConfig):
        """Options of `torchvision`."""

        kind: Literal["torchvision"]

        def _published_figures(self) -> Any:
            from torchvision import models

            return models.get_model_weights(self.name).DEFAULT.transforms()

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        from torchvision import models

        channels, height, _ = picture(config.kind, shape)
        known = models.list_models(module=models)
        if config.name not in known:
            raise _unknown(
                config.name,
                known,
                "torchvision",
                "import torchvision.models as m; print(*m.list_models(module=m))",
            )
        if channels not in (1, 3):
            raise Mismatch(
                f"torchvision's networks read three channels, and these pictures have {channels}",
                "use {kind: timm, name: …}, which reads any number",
                "kind",
            )
        options = self._options(config, height)
        super().__init__(
            lambda: models.get_model(config.name, weights=None, num_classes=classes, **options),
            shape,
            classes,
            f"torchvision's {config.name}",
        )
        if config.pretrained:
            self._download(models.get_model_weights(config.name).DEFAULT)

    @staticmethod
    def _options(config: Config, size: int) -> dict[str, Any]:
        """What some builders need to be told."""
        if config.name in ("googlenet", "inception_v3"):
            return {"aux_logits": False, "init_weights": True, "transform_input": config.pretrained}
        if config.name.startswith("vit_") and not config.pretrained:
            return {"image_size": size}
        return {}

    def _download(self, weights: Any) -> None:
        try:
            state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except Exception as error:  # the network, the disk or the hash
            raise_lack(error)
            raise _not_downloaded("torchvision", weights.url, error) from error
        start_from(self, state, weights.url)

    def see(self, x: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) → (B, 3, H, W)."""
        return x.expand(-1, 3, -1, -1)

    def translate(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """torchvision's files → this model: without the classifiers that only train, DenseNets renamed.

        The published DenseNets still name ``norm.1`` what has been ``norm1`` for years.
        """
        auxiliary = re.compile(r"(aux[12]|AuxLogits)\.")
        numbered = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d)\.")
        return super().translate(
            {
                numbered.sub(r"\1\2.", name): value
                for name, value in state.items()
                if not auxiliary.match(name)
            }
        )


class Timm(External):
    """A network of timm, by name; its stem takes the data's channels. Needs `pip install 'kdrun[timm]'`."""

    class Config(ExternalConfig):
        """Options of `timm`."""

        kind: Literal["timm"]

        def _published_figures(self) -> Any:
            import timm

            return timm.get_pretrained_cfg(self.name)

    def __init__(self, config: Config, shape: tuple[int, ...], classes: int) -> None:
        try:
            import timm
        except ImportError as error:
            raise Mismatch("timm is not installed", "pip install 'kdrun[timm]'", "kind") from error
        channels, *size = picture(config.kind, shape)
        if not timm.is_model(config.name):
            raise _unknown(config.name, timm.list_models(), "timm", "import timm; print(*timm.list_models())")
        try:
            published = timm.get_pretrained_cfg(config.name)
        except RuntimeError as error:  # no such tag
            known = timm.list_pretrained(f"{config.name.partition('.')[0]}.*")
            raise Mismatch(str(error), did_you_mean(config.name, known), "name") from error
        fixed: dict[str, Any] = (
            {"img_size": tuple(size)} if getattr(published, "fixed_input_size", False) else {}
        )

        def make(pretrained: bool) -> nn.Module:
            net: nn.Module = timm.create_model(
                config.name, pretrained=pretrained, num_classes=classes, in_chans=channels, **fixed
            )
            return net

        super().__init__(lambda: make(False), shape, classes, f"timm's {config.name}")
        if config.pretrained:
            self._download(make, getattr(published, "hf_hub_id", None) or getattr(published, "url", None))

    def _download(self, make: Callable[[bool], nn.Module], source: str | None) -> None:
        try:
            state = make(True).state_dict()
        except Exception as error:  # no such weights, the network, the disk
            raise_lack(error)
            raise _not_downloaded("timm", source or "none are published", error) from error
        start_from(self, state, str(source))


class _Mean(nn.Module):
    """The mean over all places; vectors stay as they are. ``dim`` is where the channels are."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, …) or (B, …, D) → (B, D)."""
        return x.movedim(self.dim, 1).flatten(2).mean(2) if x.ndim > 2 else x


def _unknown(name: str, known: list[str], library: str, code: str) -> Mismatch:
    near = did_you_mean(name, known, list_all=False)
    listing = f'python -c "{code}" lists them'
    return Mismatch(f"{library} has no network '{name}'", f"{near} {listing}".strip(), "name")


def _not_downloaded(library: str, source: str, error: Exception) -> WeightsError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return WeightsError(
        f"the pretrained weights of {library} could not be downloaded ({source}): {reason}; "
        "write `initial_weights: FILE`, which takes a local copy, instead of `pretrained: true`"
    )


def _dry_run(net: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], list[str]]:
    """The outputs by layer in the order in which they came, and the layers whose outputs were overwritten."""
    seen: dict[str, tuple[Tensor, int]] = {}

    def note(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            seen.pop(name, None)
            seen[name] = output, output._version

    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: note(name, output))
        for name, module in net.named_modules()
        if name
    ]
    with taps.quiet(net):
        net(x)
    for handle in handles:
        handle.remove()
    overwritten = [name for name, (output, version) in seen.items() if output._version != version]
    rows = {name: output for name, (output, _) in seen.items() if output.ndim > 1 and len(output) == len(x)}
    return rows, overwritten


def _shield(module: nn.Module) -> None:
    """Keep what is recorded of a layer apart from what its network does to the layer's output in place.

    The hook must stay the last one, so later ones are put before it.
    """
    module.register_forward_hook(lambda m, _i, output: output.clone() if len(m._forward_hooks) > 1 else None)
    module.register_forward_hook = functools.partial(  # type: ignore[method-assign]  # of this module alone
        module.register_forward_hook, prepend=True
    )


def _layout(net: nn.Module) -> taps.Layout | None:
    """Where a transformer's tokens come from, if it says so as those of timm or of torchvision do."""
    facts: Any = net
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    if grid is not None and hasattr(net, "num_prefix_tokens"):
        return taps.Layout(facts.num_prefix_tokens, tuple(grid))
    if hasattr(net, "image_size") and hasattr(net, "patch_size") and hasattr(net, "class_token"):
        return taps.Layout(1, (facts.image_size // facts.patch_size,) * 2)
    return None


def _attentions(net: nn.Module, outputs: dict[str, Tensor]) -> dict[str, int]:
    """The layers that give queries, keys and values, with their numbers of heads, in timm's plain self-attention.

    Not where these are changed before they are compared: normalised, rotated, or mixed over heads.
    """
    found = {}
    for name, module in net.named_modules():
        facts: Any = module
        plain = type(module).__name__ == "Attention" and isinstance(
            getattr(module, "q_norm", None), nn.Identity | None
        )
        if plain and outputs.get(f"{name}.qkv", torch.empty(0)).ndim == 3:
            found[f"{name}.qkv"] = int(facts.num_heads)
    return found


def _width(module: nn.Module) -> int | None:
    """How many numbers a linear layer, or one that is linear at each place, gives."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
        return module.out_channels
    return None


def _stages(net: nn.Module, outputs: dict[str, Tensor], head: str) -> tuple[str, ...]:
    """The layers that end the stages, shallow to deep.

    None where maps are (B, H, W, D), as in Swin transformers: losses would take their rows for channels.
    """
    layers = tuple(f"layer{i}" for i in range(1, 5))
    if all(name in outputs for name in layers):
        return layers
    ends = _last_of_each_size(net, outputs, head)
    tokens = _token_blocks(outputs, head, after=ends[-1:])
    if len(tokens) > len(ends):
        return tokens
    channels_last = ends and outputs[ends[0]].shape[3] < outputs[ends[-1]].shape[3]
    return () if channels_last else tuple(ends)


def _last_of_each_size(net: nn.Module, outputs: dict[str, Tensor], head: str) -> list[str]:
    """Blocks, or layers where there are no blocks, after which the map shrinks or ends; never a mere pool."""
    units = [name for name in _units(net, "", outputs) if outputs[name].ndim == 4]
    modules = {name: net.get_submodule(name) for name in units if not f"{head}.".startswith(f"{name}.")}
    learned = [n for n, m in modules.items() if list(m.parameters()) or "Pool" not in type(m).__name__]
    ends: list[str] = []
    for name in [name for name in learned if any(modules[name].children())] or learned:
        shrunk = ends and outputs[name].shape[2] * SHRINK <= outputs[ends[-1]].shape[2]
        ends = [*(ends if shrunk else ends[:-1]), name]
    return ends


def _units(module: nn.Module, prefix: str, outputs: dict[str, Tensor]) -> Iterator[str]:
    """The largest parts that give tokens, or within which maps do not shrink twice, in their order."""
    for name, part in _nearest(module, prefix, outputs):
        output = outputs[name]
        within = [outputs[inner] for inner, _ in _nearest(part, f"{name}.", outputs)]
        largest = max((t.shape[2] for t in within if t.ndim == 4), default=0)
        if output.ndim == 3 or not largest or (output.ndim == 4 and largest <= 2 * SHRINK * output.shape[2]):
            yield name
        else:
            yield from _units(part, f"{name}.", outputs)


def _nearest(module: nn.Module, prefix: str, outputs: dict[str, Tensor]) -> Iterator[tuple[str, nn.Module]]:
    """The children of which outputs are known, or theirs where they only hold others."""
    for child_name, child in module.named_children():
        name = prefix + child_name
        yield from [(name, child)] if name in outputs else _nearest(child, f"{name}.", outputs)


def _token_blocks(outputs: dict[str, Tensor], head: str, after: list[str]) -> tuple[str, ...]:
    """The longest row of siblings that give tokens (B, T, D), once the maps have ended."""
    order = list(outputs)
    rows: dict[str, list[str]] = {}
    for name in order[max((order.index(end) + 1 for end in after), default=0) :]:
        parent = name.rpartition(".")[0]
        if outputs[name].ndim == 3 and not head.startswith(f"{parent}."):
            rows.setdefault(parent, []).append(name)
    longest: list[str] = max(rows.values(), key=len, default=[])
    return tuple(longest)
