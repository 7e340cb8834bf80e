"""Layers in whole numbers of eight bits: how they train, rounded in each pass, and what they are in the end.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2018.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.models.tracing import hooked

INPUTS_TO = 127
"""Inputs are whole numbers from 0 to this, of seven bits: processors without instructions of their own for sums of
products of bytes add two of them in 16 bits, where those of eight would overflow."""
WEIGHTS_TO = 127
"""Weights are whole numbers from minus this to this, of each output's own scale."""
FOLLOWED = 0.01
"""How much of the range of a layer's inputs each training batch decides."""
LEAST = 1e-7
"""The least scale: a layer that only saw zeros divides by none."""


class Rounding(nn.Module):
    """A layer whose inputs and weights are rounded in each pass as they will be when it is finished, in float32.

    Gradients pass as if nothing were rounded, but for inputs beyond the range ``low`` to ``high``, which follows the
    training batches. Subclasses are layers of torch's.
    """

    weight: Tensor
    bias: Any
    low: Tensor
    high: Tensor

    def add_range(self) -> None:
        """Give it a range, of which nothing is known yet."""
        for name in ("low", "high"):
            self.register_buffer(name, self.weight.new_zeros(()))

    def seen(self, x: Tensor) -> Tensor:
        """The inputs rounded, of the same shape."""
        x = x.float()
        if self.training:
            self._follow(x.detach())
        scale, zero = self.input_grid()
        return ((_rounded(x / scale) + zero).clamp(0, INPUTS_TO) - zero) * scale

    def rounded_weight(self) -> Tensor:
        """The weight rounded, of the same shape."""
        scale = _to_each(self.weight_scale(), self.weight)
        return _rounded(self.weight / scale) * scale

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        """The first batch is the range, and later ones move it."""
        least, most = torch.aminmax(x)
        unknown = self.low == self.high
        for end, now in ((self.low, least.clamp(max=0)), (self.high, most.clamp(min=0))):
            end.copy_(torch.where(unknown, now, end.lerp(now, FOLLOWED)))

    def input_grid(self) -> tuple[Tensor, Tensor]:
        """The scale of the inputs, and which whole number is 0; both ()."""
        scale = ((self.high - self.low) / INPUTS_TO).clamp(min=LEAST)
        return scale, (-self.low / scale).round()

    @torch.no_grad()
    def weight_scale(self) -> Tensor:
        """The scale of each output's weights (O,)."""
        return self.weight.flatten(1).abs().amax(dim=1).clamp(min=LEAST) / WEIGHTS_TO


class RoundingLinear(Rounding, nn.Linear):
    """A linear layer in training."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, …, I) → (B, …, O)."""
        return F.linear(self.seen(x), self.rounded_weight(), self.bias)


class RoundingConv2d(Rounding, nn.Conv2d):
    """A convolution in training."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) → (B, O, H', W')."""
        return self._conv_forward(self.seen(x), self.rounded_weight(), self.bias)


ROUNDING: dict[type[nn.Module], type[Rounding]] = {nn.Linear: RoundingLinear, nn.Conv2d: RoundingConv2d}
"""What a layer becomes; subclasses may do more than their bases and are left alone."""


def begin_rounding(model: nn.Module) -> None:
    """Have all layers that can be in int8 round, in the model itself."""
    for module in model.modules():
        plain = type(module) is not nn.Conv2d or (
            module.padding_mode == "zeros" and not isinstance(module.padding, str)
        )
        if type(module) in ROUNDING and plain:
            module.__class__ = ROUNDING[type(module)]
            assert isinstance(module, Rounding)
            module.add_range()


def rounds(model: nn.Module) -> bool:
    """Whether some of its layers round in training."""
    return any(isinstance(module, Rounding) for module in model.modules())


def look_at_ranges(model: nn.Module, x: Tensor) -> None:
    """Learn the ranges of all inputs from a batch (B, …); nothing else of the model changes."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = isinstance(module, Rounding)
    with torch.no_grad():
        model(x)
    for module, mode in modes:
        module.training = mode


class Kernel(NamedTuple):
    """What oneDNN is given beside the inputs: packed weights, scales, and which whole number is 0."""

    packed: Tensor
    scale: Tensor
    zeros: Tensor
    input_scale: float
    zero: int


class Int8Layer(nn.Module, ABC):
    """A finished layer: whole numbers as weights, whole numbers as what its inputs are rounded to.

    ``weight`` is int8, ``scale`` (O,), ``bias`` (O,), ``input_scale`` () and ``zero`` () float32. On a CPU oneDNN
    multiplies and adds whole numbers; elsewhere, or where torch lacks that, floats do, which are as exact and no
    faster than those of any other layer. Outputs are floats.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    scale: Tensor
    input_scale: Tensor
    zero: Tensor

    def __init__(self, layer: Rounding) -> None:
        super().__init__()
        scale, (input_scale, zero) = layer.weight_scale(), layer.input_grid()
        whole = (layer.weight.detach() / _to_each(scale, layer.weight)).round().to(torch.int8)
        self.weight = nn.Parameter(whole, requires_grad=False)
        bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
        self.register_parameter("bias", bias)
        for name, value in {"scale": scale, "input_scale": input_scale, "zero": zero}.items():
            self.register_buffer(name, value.detach().float())
        self.in_floats = False
        """Whether floats are to multiply it, whatever the device."""
        self._kernel: Kernel | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → the layer's outputs, of the same kind of number."""
        by_floats = self.in_floats or not has_kernels(x.device)
        return (self._of_floats(x.float()) if by_floats else self._of_bytes(x.float())).to(x.dtype)

    def _of_floats(self, x: Tensor) -> Tensor:
        scale, zero, bias = self.input_scale.float(), self.zero.float(), self.bias
        whole = (x / scale).round_().add_(zero).clamp_(0, INPUTS_TO).sub_(zero)
        with torch.autocast(x.device.type, enabled=False):  # which would round the sums
            said = self.multiplied(whole, self.weight.float())
        said = said * self.beside(self.scale.float() * scale)
        return said if bias is None else said + self.beside(bias.float())

    def _of_bytes(self, x: Tensor) -> Tensor:
        if self._kernel is None:
            zeros = torch.zeros(len(self.scale), dtype=torch.int32)
            input_scale, zero = float(self.input_scale), int(self.zero)
            packed = self.packed(input_scale, zero)
            self._kernel = Kernel(packed, self.scale.float(), zeros, input_scale, zero)
        kernel = self._kernel
        whole = (x / kernel.input_scale).round_().add_(kernel.zero).clamp_(0, INPUTS_TO).to(torch.uint8)
        return self.asked(kernel, whole)

    @abstractmethod
    def multiplied(self, whole: Tensor, weight: Tensor) -> Tensor:
        """The layer without scale and bias, of whole numbers in float32."""

    @abstractmethod
    def beside(self, of_outputs: Tensor) -> Tensor:
        """A number for each output (O,), in a shape that goes with the layer's outputs."""

    @abstractmethod
    def packed(self, input_scale: float, zero: int) -> Tensor:
        """The weights as oneDNN wants them."""

    @abstractmethod
    def asked(self, kernel: Kernel, whole: Tensor) -> Tensor:
        """What oneDNN says of bytes."""

    def __getstate__(self) -> dict[str, Any]:
        """Without what is packed, which cannot be copied."""
        return self.__dict__ | {"_kernel": None}

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        self._kernel = None
        return super()._apply(*arguments, **options)

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        self._kernel = None
        super()._load_from_state_dict(*arguments, **options)


class Int8Linear(Int8Layer):
    """A linear layer in int8."""

    def multiplied(self, whole: Tensor, weight: Tensor) -> Tensor:
        """(B, …, I) → (B, …, O)."""
        return F.linear(whole, weight)

    def beside(self, of_outputs: Tensor) -> Tensor:
        """Outputs are the last dimension."""
        return of_outputs

    def packed(self, input_scale: float, zero: int) -> Tensor:
        """The weights as oneDNN wants them."""
        packed: Tensor = torch.ops.onednn.qlinear_prepack(self.weight.detach(), None)
        return packed

    def asked(self, kernel: Kernel, whole: Tensor) -> Tensor:
        """What oneDNN says of bytes (B, …, I)."""
        given = (kernel.input_scale, kernel.zero, kernel.packed, kernel.scale, kernel.zeros, self.bias)
        said: Tensor = torch.ops.onednn.qlinear_pointwise(
            whole.flatten(0, -2).contiguous(), *given, 1.0, 0, torch.float32, "none", [], ""
        )
        return said.unflatten(0, whole.shape[:-1]) if whole.ndim > 2 else said


class Int8Conv2d(Int8Layer):
    """A convolution in int8."""

    def __init__(self, layer: RoundingConv2d) -> None:
        super().__init__(layer)
        self._form: tuple[Any, ...] = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def multiplied(self, whole: Tensor, weight: Tensor) -> Tensor:
        """(B, I, H, W) → (B, O, H', W')."""
        return F.conv2d(whole, weight, None, *self._form)

    def beside(self, of_outputs: Tensor) -> Tensor:
        """Outputs are the channels."""
        return of_outputs[:, None, None]

    def packed(self, input_scale: float, zero: int) -> Tensor:
        """The weights as oneDNN wants them."""
        packed: Tensor = torch.ops.onednn.qconv_prepack(
            self.weight.detach(), self.scale.float(), input_scale, zero, *self._form, None
        )
        return packed

    def asked(self, kernel: Kernel, whole: Tensor) -> Tensor:
        """What oneDNN says of bytes (B, I, H, W)."""
        given = (kernel.input_scale, kernel.zero, kernel.packed, kernel.scale, kernel.zeros, self.bias)
        said: Tensor = torch.ops.onednn.qconv_pointwise(
            whole, *given, *self._form, 1.0, 0, torch.float32, "none", [], ""
        )
        return said


FINISHED: Mapping[type[nn.Module], Any] = {RoundingLinear: Int8Linear, RoundingConv2d: Int8Conv2d}


def finish_rounding(model: nn.Module) -> None:
    """Put finished layers in the places of those that round in training, in the model itself."""
    for name, module in [*model.named_modules()]:
        if isinstance(module, Rounding):
            finished = FINISHED[type(module)](module)
            if hooked(module):  # whoever looks at what the layer sees or says, goes on with that
                finished._forward_pre_hooks = module._forward_pre_hooks
                finished._forward_hooks = module._forward_hooks
            model.set_submodule(name, finished.train(module.training))


def has_kernels(device: torch.device) -> bool:
    """Whether torch multiplies whole numbers of eight bits on a device by itself."""
    known = hasattr(torch.ops.onednn, "qconv_pointwise") and hasattr(torch.ops.onednn, "qlinear_pointwise")
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and known


def told(model: nn.Module, device: torch.device) -> list[str]:
    """What is to be said of a finished model in int8: what of it is not, and where that is not what is timed."""
    modules = dict(model.named_modules())
    if not any(isinstance(module, Int8Layer) for module in modules.values()):
        return []
    floats = [
        layer or name  # of a layer its name, of the model itself those of its parameters
        for layer, module in modules.items()
        if not isinstance(module, Int8Layer)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim > 1
    ]
    sentences = [f"stays in float32: {', '.join(dict.fromkeys(floats))}"] * bool(floats)
    if not has_kernels(device):
        sentences.append(
            f"its whole numbers are multiplied as floats on {device}: its latency is not that of int8"
        )
    return sentences


def _rounded(x: Tensor) -> Tensor:
    """The nearest whole numbers, with the gradient of ``x`` itself."""
    return x + (x.round() - x).detach()


def _to_each(scale: Tensor, weight: Tensor) -> Tensor:
    """A number for each output (O,), in a shape that goes with the weights (O, …)."""
    return scale.view(-1, *[1] * (weight.ndim - 1))
