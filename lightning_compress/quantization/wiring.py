"""Quantizers by their settings, and the hooks through which they act."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from lightning_compress.foundation.boundary import Boundary
from lightning_compress.foundation.function_calls import CallHandle, on_call
from lightning_compress.quantization.candidates import Weight
from lightning_compress.quantization.quantizers.activation import ActivationQuantizer
from lightning_compress.quantization.quantizers.attention import SeparateProjections
from lightning_compress.quantization.quantizers.bias import BiasShadow, fits
from lightning_compress.quantization.quantizers.hooks import ActivationHook, ClipForward, Unnested
from lightning_compress.quantization.quantizers.learned import LearnedActivationQuantizer, LearnedWeightQuantizer
from lightning_compress.quantization.quantizers.searched import SearchedWeightQuantizer
from lightning_compress.quantization.quantizers.switch import Switch
from lightning_compress.quantization.quantizers.weight import WeightQuantizer
from lightning_compress.quantization.settings import ActivationSpec, WeightSpec

Handle = torch.utils.hooks.RemovableHandle | CallHandle | ClipForward | SeparateProjections | Unnested


def weight_quantizer(weight: Weight, spec: WeightSpec, switch: Switch) -> WeightQuantizer:
    """The quantizer of a weight by how its range is found."""
    if spec.range == "learned":
        return LearnedWeightQuantizer(weight, spec, switch)
    if spec.range == "minmax":
        return WeightQuantizer(weight, spec)
    return SearchedWeightQuantizer(weight, spec, switch)


def activation_quantizer(
    name: str, spec: ActivationSpec, switch: Switch, device: torch.device | None = None
) -> ActivationQuantizer:
    """The quantizer of an activation by how its range is found, on a device; it moves to its first tensor."""
    kind = LearnedActivationQuantizer if spec.range == "learned" else ActivationQuantizer
    return kind(name, spec, switch, device)


def hook(module: nn.Module, place: Boundary, hook: ActivationHook) -> Iterator[Handle]:
    """Let a quantizer act at a boundary of a module; gives what takes it off again."""
    if place.function:
        yield on_call(module, hook.at_call(place))
    elif place.side == "input":
        yield module.register_forward_pre_hook(hook.enter, with_kwargs=True)
    else:
        yield module.register_forward_hook(hook.leave)
        if ClipForward.serves(module):
            yield ClipForward(module, hook)


def bias_shadows(
    weight: WeightQuantizer, activation: ActivationQuantizer, norm: nn.Module | None, switch: Switch
) -> Iterator[BiasShadow]:
    """What lets the biases of an integer layer be in evaluation what they are in a file.

    Args:
        weight: Quantizer of the layer's weight.
        activation: Quantizer of its input.
        norm: The batch norm that is folded into the layer.
        switch: What the model's quantizers share.
    """
    if weight.spec.group_size is not None:
        return
    scales = None if weight.axis is None else weight.weight.shape[weight.axis]
    for use in weight.uses:
        bias = use.owner._parameters.get(use.bias) if use.bias is not None else None
        if norm is not None or (bias is not None and fits(bias, scales)):
            yield BiasShadow(weight, activation, use, norm, switch)
