"""Models that are made of finished students: with most weights at 0, with fewer channels, or in whole numbers."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny, WithJsonSchema, model_validator
from torch import Tensor, nn

from kdrun import registry, taps
from kdrun.contracts import Model, ModelConfig
from kdrun.errors import Mismatch
from kdrun.machine import raise_lack
from kdrun.models.int8 import begin_rounding
from kdrun.models.prepared import fold, foldable

PRUNABLE = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase)
"""Layers whose weights can be pruned one by one; normalisations, biases and embeddings stay."""
WITH_CHANNELS = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
"""Layers that a channel runs through."""
CLOSE = 1e-4
"""How far a network without channels may be from the same with these at 0, relative to its outputs."""


def _origin(value: object) -> ModelConfig:
    """The config of the model that another is made of; raises ``ValueError``."""
    if isinstance(value, ModelConfig):
        return value
    config: ModelConfig = registry.MODELS.read(value)
    return config


class CompressedConfig(ModelConfig):
    """Options of every model that is made of a finished student."""

    of: (
        Annotated[
            SerializeAsAny[ModelConfig],
            BeforeValidator(_origin),
            WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]}),
            registry.MODELS,
        ]
        | None
    ) = None
    """the model that it is made of; `from` says it, and it is written here by itself"""

    @model_validator(mode="after")
    def _starts_from_its_origin(self) -> Self:
        if self.initial_weights is not None:
            raise ValueError(
                "is made of a finished student and starts from its weights; remove `initial_weights`"
            )
        return self


class Compressed(Model):
    """What makes a model of another one; the model that it makes is that one, changed, with the names of its layers."""

    compresses = True

    @staticmethod
    @abstractmethod
    def made_of(config: Any, model: Model, x: Tensor) -> Model:
        """A model as it is before it is fine-tuned, made of one that reads inputs ``x`` (B, …), which is used up."""


class Pruned(Compressed):
    """A finished student, `from`, without a share of its weights, and trained on without them.

    Either the smallest weights of all convolutions, linear and recurrent layers together are 0 and stay so (Han, Pool,
    Tran, Dally, "Learning both Weights and Connections for Efficient Neural Networks", 2015), which makes it neither
    smaller nor faster here; or, `structured`, of each layer's channels and hidden units those with the smallest weights
    are taken out (Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets", 2017; those that belong
    together over sums by DepGraph: Fang, Ma, Song, Mi, Wang, "DepGraph: Towards Any Structural Pruning", 2023), which
    does. Structured pruning needs `pip install 'kdrun[compress]'`.
    """

    class Config(CompressedConfig):
        """Options of `pruned`."""

        kind: Literal["pruned"]
        share: float = Field(default=0.5, gt=0, lt=1)
        """the share of the weights that are 0; structured: the share of each layer's channels that are taken out"""
        structured: bool = False
        """take out whole channels and hidden units, so that the network is smaller"""

    @staticmethod
    def made_of(config: Config, model: Model, x: Tensor) -> Model:
        """The model with zeros, or with fewer channels."""
        if config.structured:
            return without_channels(model, config.share, x)
        zero_smallest(model, config.share)
        return model


class Int8(Compressed):
    """A finished student, `from`, in whole numbers of eight bits, trained on as if it were rounded already.

    Linear layers and convolutions have one scale for the weights of each output and one for all inputs, whose range
    follows the training; BatchNorms that follow them are folded into them first. What else there is stays in float32.
    Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018.
    """

    class Config(CompressedConfig):
        """Options of `int8`."""

        kind: Literal["int8"]

    @staticmethod
    def made_of(config: Config, model: Model, x: Tensor) -> Model:
        """The model with BatchNorms folded and all layers that can be in int8 rounding."""
        with taps.quiet(model):
            folds = foldable(model, x).items()
            fold(model, folds)
        gone = {norm for _, norm in folds}
        if gone.intersection(model.norms):
            model.norms = ()
        model.requires_grad_(True)
        _hold_zeros(model)
        begin_rounding(model)
        return model


# --------------------------------------------------------------------------------------------- zeros


def prunable(model: nn.Module) -> Iterator[nn.Parameter]:
    """The weights that are pruned one by one."""
    for module in model.modules():
        if isinstance(module, PRUNABLE):
            yield from (weight for weight in module.parameters(recurse=False) if weight.ndim > 1)


@torch.no_grad()
def zero_smallest(model: nn.Module, share: float) -> None:
    """Set a share of all weights to 0, the smallest by magnitude, for good; of equal ones the first."""
    weights = list(prunable(model))
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    smallest = sizes.argsort(stable=True)[: round(share * len(sizes))]
    kept = torch.ones_like(sizes).index_fill_(0, smallest, 0.0)
    for weight, part in zip(weights, kept.split([weight.numel() for weight in weights]), strict=True):
        weight.mul_(part.view_as(weight))
    _hold_zeros(model)


def empty_layers(model: nn.Module) -> list[str]:
    """The names of the prunable weights that are all 0."""
    of_interest = {id(weight) for weight in prunable(model)}
    return [
        name for name, weight in model.named_parameters() if id(weight) in of_interest and not weight.any()
    ]


def _hold_zeros(model: nn.Module) -> None:
    """Give weights that are 0 no gradient, so that no optimizer moves them."""
    for weight in prunable(model):
        weight.register_hook(lambda gradient, weight=weight: gradient * (weight != 0))


# --------------------------------------------------------------------------------------------- channels


def without_channels(model: Model, share: float, x: Tensor) -> Model:
    """The model without a share of each layer's channels, those of the smallest mean magnitude; its outputs stay.

    How many are left depends on the share alone. Raises ``Mismatch`` where that cannot be done, which is: where the
    network does not say the same as the whole one with these channels at 0.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise Mismatch(
            "torch-pruning is not installed", "pip install 'kdrun[compress]'", "structured"
        ) from error
    kind, hint = model.made_from.kind, "write `structured: false`"
    if any(
        next(m.parameters(recurse=False), None) is not None and not isinstance(m, WITH_CHANNELS)
        for m in model.modules()
    ):
        raise Mismatch(
            f"'{kind}' has other layers than convolutions and linear ones, whose channels nobody can tell",
            hint,
            "structured",
        )
    for name, layer in model.named_modules():
        count = (
            layer.weight.shape[0] if isinstance(layer, nn.Conv2d | nn.Linear) and name != model.head else 0
        )
        if count > 1 and int(count * (1 - share)) == 0:  # torch-pruning would leave such a layer whole
            raise Mismatch(
                f"of {count} channels of '{name}' none would be left", "write a smaller share", "share"
            )
    x = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    names = {module: name for name, module in model.named_modules()}
    zeroed, training = copy.deepcopy(model).eval(), model.training
    model.eval()
    try:
        pruner = torch_pruning.pruner.BasePruner(
            model,
            x,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=1),
            pruning_ratio=share,
            ignored_layers=[model.get_submodule(model.head)],
        )
        for group in pruner.step(interactive=True):
            for dependency, places in group:
                if "out" in dependency.handler.__name__ and dependency.target.module in names:
                    _silence(zeroed.get_submodule(names[dependency.target.module]), places)
            group.prune()
        with torch.no_grad():
            said, wanted = model(x), zeroed(x)
    except Exception as error:  # what a library cannot prune, it tells in any way
        raise_lack(error)
        raise Mismatch(f"the channels of '{kind}' cannot be taken out", hint, "structured") from error
    if said.shape != wanted.shape or not torch.allclose(
        said, wanted, rtol=0, atol=CLOSE * float(wanted.abs().max())
    ):
        raise Mismatch(
            f"'{kind}' without some channels is not what it is with these at 0", hint, "structured"
        )
    if sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in zeroed.parameters()):
        raise Mismatch(f"'{kind}' has no channels to take out", hint, "structured")
    return model.train(training)


@torch.no_grad()
def _silence(module: nn.Module, places: list[int]) -> None:
    """Have some of a layer's outputs always be 0."""
    for parameter in module.parameters(recurse=False):
        parameter[places] = 0
