"""Quantizers by their settings, and the hooks through which they act."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.boundary import Boundary
from lightning_compress.foundation.function_calls import CallHandle, on_call
from lightning_compress.quantization.candidates import Weight
from lightning_compress.quantization.computed_weights import ComputedUse
from lightning_compress.quantization.placement.sites import Placement
from lightning_compress.quantization.quantizers.attention import SeparateProjections
from lightning_compress.quantization.quantizers.base import ActivationQuantizer, Switch, WeightQuantizer
from lightning_compress.quantization.quantizers.bias import BiasShadow, fits
from lightning_compress.quantization.quantizers.computed import ComputedWeight
from lightning_compress.quantization.quantizers.hooks import ActivationHook, ClipForward, Unnested
from lightning_compress.quantization.quantizers.learned import LearnedActivationQuantizer, LearnedWeightQuantizer
from lightning_compress.quantization.quantizers.searched import SearchedWeightQuantizer
from lightning_compress.quantization.settings import ActivationSpec, QuantizationSettings, WeightSpec

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


def computed_weights(
    uses: Iterable[ComputedUse],
    modules: Mapping[str, nn.Module],
    overrides: Mapping[str, Mapping[str, Any]],
    settings: QuantizationSettings,
    switch: Switch,
) -> Iterator[tuple[ComputedWeight, Mapping[str, Any]]]:
    """Quantizers of computed weights that are selected, or of which a part is, each with its overrides.

    Args:
        uses: Where such weights pass.
        modules: Full name → module.
        overrides: Full name of what is selected → its overrides.
        settings: What is asked for now.
        switch: What the model's quantizers share.
    """
    for use in uses:
        own = next((overrides[name] for name in (use.layer, *use.made_of) if name in overrides), None)
        if own is not None and (spec := settings.weight_spec(own)) is not None:
            yield ComputedWeight(use, modules[use.place.module], spec, switch), own


def hooks(
    placement: Placement,
    modules: Mapping[str, nn.Module],
    activations: Mapping[str, ActivationQuantizer],
    switch: Switch,
    *,
    functions: bool,
) -> Iterator[tuple[nn.Module, Handle]]:
    """Let quantizers act where a placement has them; gives each module with what takes a quantizer off it again.

    Args:
        placement: Where.
        modules: Full name → module.
        activations: Site's name → its quantizer.
        switch: What the model's quantizers share.
        functions: Whether at functions, or else at modules.

    Raises:
        CompressionError: A module is missing.
    """
    for site in placement.sites:
        for at, paths in site.places.items():
            if at.module not in modules:
                raise CompressionError(
                    f"The activation quantizer {site.name!r} belongs to module {at.module!r}, which this model does "
                    f"not have. Load it into the architecture that it was trained with."
                )
            if bool(at.function) == functions:
                hook = ActivationHook(activations[site.name], paths, switch)
                yield from ((modules[at.module], handle) for handle in _hook(modules[at.module], at, hook))


def _hook(module: nn.Module, place: Boundary, hook: ActivationHook) -> Iterator[Handle]:
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
