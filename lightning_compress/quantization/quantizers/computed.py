"""Fake quantization of a weight that a module computes whenever it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_compress.foundation.function_calls import CallHook
from lightning_compress.foundation.nested import replaced_arguments
from lightning_compress.quantization.computed_weights import ComputedUse
from lightning_compress.quantization.fake_quantize import functional as kernels
from lightning_compress.quantization.fake_quantize.integers import quantize_weight_integers
from lightning_compress.quantization.quantizers import bias as biases
from lightning_compress.quantization.quantizers.activation import ActivationQuantizer
from lightning_compress.quantization.quantizers.switch import Switch
from lightning_compress.quantization.ranges import observers
from lightning_compress.quantization.settings import WeightSpec


class ComputedWeight:
    """Quantizes a computed weight where a module hands it to a function, and in evaluation rounds the bias there.

    Its scales are those of the largest values, however the ranges of others are found: they follow from the weight of
    each forward.

    Args:
        use: Where it passes.
        module: The module that calls the function.
        spec: Bits and granularity.
        switch: What the model's quantizers share.

    Attributes:
        activation: Quantizer of the layer's input, where there is one.
    """

    def __init__(self, use: ComputedUse, module: nn.Module, spec: WeightSpec, switch: Switch) -> None:
        self.use = use
        self.module = module
        self.spec = spec
        self.switch = switch
        self.axis = None if spec.granularity == "tensor" else use.axis
        self.activation: ActivationQuantizer | None = None

    def hook(self) -> CallHook:
        """What acts at the function's call."""
        return CallHook(self.use.place.function, self.use.place.call, before=self._before)

    def scale(self, weight: torch.Tensor) -> torch.Tensor:
        """Scales of a weight: float32, ``[C]`` along ``axis``, ``[]`` without; grouped ``[C, groups]``."""
        return observers.weight_scale(weight, self.axis, self.spec.qmax, group_size=self.spec.group_size)

    def integers(self, weight: torch.Tensor) -> torch.Tensor:
        """The integers that an export stores: int8, the weight's shape."""
        grid = (self.scale(weight), self.axis, -self.spec.qmax, self.spec.qmax)
        return quantize_weight_integers(weight, *grid, group_size=self.spec.group_size)

    def change(self, spec: WeightSpec) -> None:
        """Go on with other bits."""
        self.spec = spec

    def _before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not self.switch.enabled:
            return args, kwargs
        scales: list[torch.Tensor] = []

        def quantize(weight: torch.Tensor) -> torch.Tensor:
            scales.append(self.scale(weight.detach()))
            qmax, group_size = self.spec.qmax, self.spec.group_size
            return kernels.fake_quantize_weight(weight, scales[0], self.axis, -qmax, qmax, group_size=group_size)

        def round_bias(bias: torch.Tensor) -> torch.Tensor:
            scale = scales[0].detach()
            if self.activation is None or not biases.fits(bias, scale.numel() if scale.ndim else None):
                return bias
            return bias + biases.rounding(bias.detach(), scale, self.activation.scale, self.spec).to(bias)

        args, kwargs = replaced_arguments(args, kwargs, [self.use.place.path], quantize)
        known = self.activation is not None and self.activation.observed and self.spec.group_size is None
        if known and self.use.bias is not None and not self.module.training:
            args, kwargs = replaced_arguments(args, kwargs, [self.use.bias], round_bias)
        return args, kwargs
