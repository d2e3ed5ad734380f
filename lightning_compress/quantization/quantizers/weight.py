"""Quantizer of one weight: fake-quantizes it while the modules that read it run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.candidates import Use, Weight
from lightning_compress.quantization.fake_quantize import functional as kernels
from lightning_compress.quantization.fake_quantize.integers import QuantizedWeight, quantize_weight_integers
from lightning_compress.quantization.quantizers.substitute import Shadow, Shadows
from lightning_compress.quantization.quantizers.switch import Switch
from lightning_compress.quantization.quantizers.weight_group import Ready, WeightGroup, connected
from lightning_compress.quantization.ranges import observers
from lightning_compress.quantization.settings import WeightSpec


class WeightQuantizer:
    """Fake-quantizes one weight while the module that uses it runs.

    Attributes:
        name: The weight's full name.
        uses: Where it is read.
        spec: Bits and granularity.
        channel_axis: Dimension of the output channels.
        axis: The same where each has a scale of its own, ``None`` with a single scale.
        fixed_scale: Scale to use instead of the one that the weight's own range gives (loaded artifacts).
        group: The weights that are quantized together on accelerators.
    """

    def __init__(self, weight: Weight, spec: WeightSpec) -> None:
        self.name = weight.name
        self.uses = weight.uses
        self.spec = spec
        self.channel_axis = weight.axis
        self.axis = None if spec.granularity == "tensor" else weight.axis
        self.fixed_scale: torch.Tensor | None = None
        self.group = WeightGroup()

    @property
    def weight(self) -> nn.Parameter:
        """The float weight."""
        first = self.uses[0]
        parameter = first.owner._parameters[first.attribute]
        if parameter is None:
            raise CompressionError(f"{self.name} is gone: its module dropped the parameter after prepare().")
        return parameter

    @property
    def biases(self) -> list[nn.Parameter]:
        """The biases that are added to its products."""
        found = (use.owner._parameters.get(use.bias) for use in self.uses if use.bias is not None)
        return [bias for bias in found if bias is not None]

    def scale(self) -> torch.Tensor:
        """The scale now: float32, ``[C]`` along ``axis``, ``[]`` without; grouped ``[C, groups]``."""
        if self.fixed_scale is not None:
            return self.fixed_scale.to(self.weight.device)
        return observers.weight_scale(
            self.weight.detach(), self.axis, self.spec.qmax, self.spec.range, group_size=self.spec.group_size
        )

    def fake_quantize(self) -> torch.Tensor:
        """The weight on its integer grid, as float; gradients pass to the parameter."""
        if (value := self.group.take(self)) is not None:
            return value
        return kernels.fake_quantize_weight(
            self.weight,
            self.scale(),
            self.axis,
            -self.spec.qmax,
            self.spec.qmax,
            group_size=self.spec.group_size,
            clips=self.spec.range != "minmax",
        )

    @property
    def grouped(self) -> bool:
        """Whether its values can be made together with those of others of its class."""
        return self.fixed_scale is None

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """``()``, ``(C,)`` or ``(C, groups)``."""
        if self.axis is None:
            return ()
        channels, group = self.weight.shape[self.axis], self.spec.group_size
        return (channels,) if group is None else (channels, -(-(self.weight.numel() // channels) // group))

    @property
    def scale_count(self) -> int:
        """How many scales it has."""
        return math.prod(self.scale_shape)

    @classmethod
    def begin(cls, quantizers: Sequence[Any]) -> None:
        """Find what is found once in many forwards."""

    @classmethod
    def factors(cls, quantizers: Sequence[Any]) -> tuple[torch.Tensor | None, bool]:
        """What min-max scales are multiplied by, or the scales (true), in a row: float32; ``None`` for neither."""
        return None, False

    def place(self, ready: Ready) -> torch.Tensor:
        """Connect values on the grid with the parameter."""
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return ready.value
        return connected(self.weight, ready)

    def change(self, spec: WeightSpec) -> None:
        """Go on with other bits."""
        self.spec = spec

    def state_dict(self) -> dict[str, Any]:
        """What the weight itself does not tell: tensors and primitives."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""

    def quantized(self) -> QuantizedWeight:
        """The weight as an export stores it."""
        scale, group, qmax = self.scale().detach(), self.spec.group_size, self.spec.qmax
        found = quantize_weight_integers(self.weight.detach(), scale, self.axis, -qmax, qmax, group_size=group)
        return QuantizedWeight(found, scale, self.axis, group, self.spec.bits)

    def integers(self) -> torch.Tensor:
        """The integers that an export stores: int8, the weight's shape."""
        return self.quantized().integers


class WeightShadows(Shadows):
    """Shows a module the quantized weights that its forward reads.

    Args:
        reads: Each quantizer with the attribute through which the module reads its weight.
        switch: What the model's quantizers share.
    """

    def __init__(self, reads: Sequence[tuple[WeightQuantizer, Use]], switch: Switch) -> None:
        super().__init__([Shadow(use.owner, use.attribute, quantizer.fake_quantize) for quantizer, use in reads])
        self._quantizers = [quantizer for quantizer, _ in reads]
        self._switch = switch

    def active(self, module: nn.Module) -> bool:
        """While the quantizers act."""
        return self._switch.enabled

    def release(self, quantizer: WeightQuantizer) -> None:
        """Let the module read the float weight of a quantizer again."""
        kept = [pair for pair in zip(self.shadows, self._quantizers, strict=True) if pair[1] is not quantizer]
        self.shadows, self._quantizers = [shadow for shadow, _ in kept], [other for _, other in kept]
