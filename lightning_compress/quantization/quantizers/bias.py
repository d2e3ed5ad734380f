"""Biases as a deployed file holds them: int32, in steps of the input's scale times the weight's.

In evaluation a fake-quantized model rounds them as the file does, batch norm folded in, so that both say the same: a
rounded bias moves every value of its channel by up to half a step of the sum, and some of them to the next integer
behind it. Training leaves biases alone.
"""

from __future__ import annotations

import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.candidates import Use
from lightning_compress.quantization.quantizers.activation import ActivationQuantizer
from lightning_compress.quantization.quantizers.substitute import Shadow, Shadows
from lightning_compress.quantization.quantizers.switch import Switch
from lightning_compress.quantization.quantizers.weight import WeightQuantizer
from lightning_compress.quantization.settings import WeightSpec

_INT32_ROOM = 2**30
_SMALLEST_SCALE = 2.0**-60


def folded(norm: nn.Module, bias: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """What a batch norm in evaluation multiplies a layer's product by, and adds to it.

    Jacob and others 2018, section 3.2.

    Args:
        norm: The batch norm behind the layer.
        bias: The layer's own.

    Returns:
        Factor and shift: float64, ``[C]``.

    Raises:
        CompressionError: The norm has no running statistics.
    """
    statistics: dict[str, torch.Tensor | None] = {**norm._buffers, **norm._parameters}
    mean, variance = statistics["running_mean"], statistics["running_var"]
    if mean is None or variance is None:
        raise CompressionError(f"{type(norm).__name__} without running statistics cannot be folded.")
    factor = torch.rsqrt(_double(variance) + float(norm.eps))  # type: ignore[arg-type]
    if (gamma := statistics["weight"]) is not None:
        factor = factor * _double(gamma)
    shift = -_double(mean) * factor
    if (beta := statistics["bias"]) is not None:
        shift = shift + _double(beta)
    if bias is not None:
        shift = shift + _double(bias) * factor
    return factor, shift


def _double(x: torch.Tensor) -> torch.Tensor:
    """float64, on the CPU where the device has none."""
    x = x.detach()
    return (x.cpu() if x.device.type == "mps" else x).double()


def filling(qmax: int, narrow: bool) -> int:
    """The power of two by which few-bit weights fill int8: a finer scale makes a finer step for the bias.

    Args:
        qmax: Largest integer of the weight.
        narrow: Whether stored integers keep 7 bits.

    Example:
        >>> filling(127, False), filling(7, False)
        (1, 16)
    """
    return int(2 ** (((63 if narrow else 127) // qmax).bit_length() - 1))


def with_room(scale: torch.Tensor, bias: torch.Tensor, input_scale: torch.Tensor | float) -> torch.Tensor:
    """A weight's scale, wider for channels whose bias would overflow int32, as ONNX Runtime's own quantizer does.

    It happens where a channel's weights are all but zero beside its bias. The floor keeps scales of channels that
    batch norm switched off (gamma = 0) above zero.

    Args:
        scale: float32, ``[]`` or ``[C]``.
        bias: Float, ``[C]``.
        input_scale: Of the layer's input: float32, ``[]``.
    """
    needed = (bias.abs().double() / (input_scale * _INT32_ROOM)).clamp(min=_SMALLEST_SCALE)
    if scale.ndim == 0:
        needed = needed.max()
    return torch.maximum(scale.double(), needed).float()


def fits(bias: torch.Tensor, scales: int | None) -> bool:
    """Whether a weight's scales are those of the sums; a transposed convolution in groups shares them among groups.

    Args:
        bias: ``[C]``.
        scales: How many the weight has along its output channels; ``None`` where it has a single one.
    """
    return scales is None or scales == bias.numel()


def integers_of(bias: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A bias in steps of ``scale``: float64 holding integers."""
    return torch.round(bias.float().double() / scale.double())


def rounding(bias: torch.Tensor, scale: torch.Tensor, input_scale: torch.Tensor, spec: WeightSpec) -> torch.Tensor:
    """What rounding adds to a bias: float64, ``[C]``.

    Args:
        bias: Float, ``[C]``.
        scale: The weight's: float32, ``[]`` or ``[C]``.
        input_scale: Of the layer's input: float32, ``[]``.
        spec: Of the weight.
    """
    exact, scale, input_scale = _double(bias), _double(scale).float(), _double(input_scale).float()
    scale = scale / filling(spec.qmax, spec.narrow)
    scale = with_room(scale, exact.float(), input_scale) * input_scale
    return integers_of(exact, scale) * scale.double() - exact


class BiasShadow(Shadows):
    """Shows a module in evaluation its bias as a file holds it.

    Args:
        weight: Quantizer of the layer's weight.
        activation: Quantizer of its input.
        use: Where the layer reads weight and bias.
        norm: The batch norm that is folded into the layer, which then adds the bias.
        switch: What the model's quantizers share.
    """

    def __init__(
        self,
        weight: WeightQuantizer,
        activation: ActivationQuantizer,
        use: Use,
        norm: nn.Module | None,
        switch: Switch,
    ) -> None:
        self.weight, self.activation, self.use, self.norm, self.switch = weight, activation, use, norm, switch
        self.host = norm or use.host
        self.owner, self.attribute = (norm, "bias") if norm is not None else (use.owner, str(use.bias))
        super().__init__([Shadow(self.owner, self.attribute, self.rounded)])

    def active(self, module: nn.Module) -> bool:
        """In evaluation, once the input's range is known."""
        has_bias = self.norm is not None or self.owner._parameters.get(self.attribute) is not None
        return not module.training and self.switch.enabled and has_bias and self.activation.observed

    def rounded(self) -> torch.Tensor:
        """The bias that the owner adds in evaluation; its gradient passes the rounding by."""
        bias, change = self.owner._parameters.get(self.attribute), self._change()
        if bias is None:
            return change.float().to(self.weight.weight.device)
        return bias + change.to(bias.device, bias.dtype)

    @torch.no_grad()
    def _change(self) -> torch.Tensor:
        """What rounding adds to the bias: float64, ``[C]``."""
        bias = self.use.owner._parameters.get(self.use.bias) if self.use.bias else None
        scale = _double(self.weight.scale()).float()
        if self.norm is not None:
            factor, exact = folded(self.norm, bias)
            scale = scale * factor.abs().float()
        else:
            exact = _double(torch.as_tensor(bias))
        return rounding(exact, scale, self.activation.scale, self.weight.spec)
