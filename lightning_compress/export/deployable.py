"""A deployable copy of a model: quantizers as constants, batch norm folded, the original untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from lightning_compress.errors import CompressionError
from lightning_compress.export.quantize_ops import dequantize, quantize_dequantize
from lightning_compress.foundation.boundary import Boundary, watch
from lightning_compress.foundation.example_inputs import call_arguments
from lightning_compress.foundation.function_calls import CallHandle, CallHook, on_call
from lightning_compress.foundation.nested import Key, replaced_arguments
from lightning_compress.foundation.recorded_forward import recording
from lightning_compress.quantization.attach import Quantization, find, strip
from lightning_compress.quantization.candidates import Use
from lightning_compress.quantization.placement.place import place
from lightning_compress.quantization.quantizers import bias as biases
from lightning_compress.quantization.quantizers.activation import ActivationQuantizer
from lightning_compress.quantization.quantizers.attention import SeparateProjections
from lightning_compress.quantization.quantizers.computed import ComputedWeight
from lightning_compress.quantization.quantizers.substitute import Shadow, Shadows


@dataclass(eq=False)
class IntegerWeight:
    """A weight of a deployable copy, into whose scale a batch norm can be folded.

    Attributes:
        integers: int8, the weight's shape.
        scale: float32: ``[]``, ``[C]`` along ``axis``, or ``[C, groups]``.
        axis: Dimension of the output channels.
        uses: Where it is read.
        group_size: Inputs that share a scale, or ``None``.
        filling: Power of two that the integers can be multiplied by, exactly, and stay int8.
    """

    integers: torch.Tensor
    scale: torch.Tensor
    axis: int
    uses: tuple[Use, ...]
    group_size: int | None = None
    filling: int = 1

    def rescale(self, factor: torch.Tensor) -> None:
        """Multiply output channel c by ``factor[c]`` exactly: the scale takes the size, the integers the sign."""
        shape = [1] * self.integers.ndim
        shape[self.axis] = -1
        self.integers = self.integers * torch.sign(factor).reshape(shape).to(torch.int8)
        size = factor.abs()
        if self.scale.ndim == 2:
            self.scale = self.scale * size[:, None]
        else:
            self.scale = self.scale * size


def deployable(model: nn.Module, example_inputs: Any) -> nn.Module:
    """Copy a model into the form that is exported.

    Weights under quantization become integer buffers that are dequantized when read, biases of integer layers
    become int32, activation quantizers become constants, and batch norm that follows a layer is folded into it
    (Jacob et al. 2018, section 3.2; exact, since per-channel symmetric scales absorb the factor).

    Args:
        model: Any module, quantized or not. It is not changed.
        example_inputs: Inputs of one forward; finds the batch norms to fold where none were recorded.

    Raises:
        CompressionError: No activation quantizer has observed anything yet, or a module was replaced since.
    """
    duplicate = copy.deepcopy(model).cpu().eval()
    quantization = find(duplicate)
    if quantization:
        quantization.weights.refuse_replaced()
        quantization.synchronize()
    folds = dict(quantization.placement.folds) if quantization and quantization.placement else None
    integers = _integers(quantization) if quantization else {}
    sites = _sites(quantization) if quantization else []
    input_scales = _input_scales(quantization) if quantization else {}
    computed = quantization.weights.computed if quantization else {}
    # A part of what was prepared keeps the names of the whole.
    root = quantization.root if quantization else duplicate
    strip(duplicate)
    if folds is None:
        root, folds = duplicate, _folds(duplicate, example_inputs)
    modules = dict(root.named_modules())
    for host in dict.fromkeys(use.host for weight in integers.values() for use in weight.uses):
        if isinstance(host, nn.MultiheadAttention) and SeparateProjections.serves(host):
            SeparateProjections(host)
    for layer, norm in folds.items():
        _fold(modules[layer], modules[norm], integers.get(f"{layer}.weight"))
        # Its module may do more than the norm.
        on_call(modules[norm], CallHook("batch_norm", 0, instead=_first))
    integers |= _fixed(duplicate, computed, example_inputs)
    stored = [shadow for name, weight in integers.items() for shadow in _store(name, weight, input_scales.get(name))]
    # From the first line of the forward to its last: some read a layer's weight, or its dtype, outside of the layer.
    Shadows(stored).attach(duplicate)
    for module in dict.fromkeys(shadow.owner for shadow in stored if isinstance(shadow.owner, nn.RNNBase)):
        Shadows([]).attach(module)
    for at, paths, quantizer in sites:
        _constant(modules[at.module], at, paths, quantizer)
    return duplicate


def _integers(quantization: Quantization) -> dict[str, IntegerWeight]:
    found = {}
    for name, q in quantization.layers.items():
        weight, filling = q.quantized(), biases.filling(q.spec.qmax, q.spec.narrow)
        found[name] = IntegerWeight(
            weight.integers, weight.scale.float(), q.channel_axis, q.uses, weight.group_size, filling
        )
    return found


def _sites(quantization: Quantization) -> list[tuple[Boundary, list[tuple[Key, ...]], ActivationQuantizer]]:
    if quantization.activations and not any(q.observed for q in quantization.activations.values()):
        names = list(quantization.activations)
        raise CompressionError(
            f"Activation quantizers have seen no training batch yet: {', '.join(names[:3])}"
            f"{' …' if len(names) > 3 else ''}. Run training forwards (model.train()) before exporting."
        )
    placement = quantization.placement
    sites = placement.sites if placement else ()
    # What no training batch reached, as a branch that only evaluation runs, is float in evaluation, too.
    return [
        (*place, quantizer)
        for site in sites
        if (quantizer := quantization.activations[site.name]).observed
        for place in site.places.items()
    ]


def _input_scales(quantization: Quantization) -> dict[str, float]:
    inputs = {weight: quantization.activations[site] for weight, site in quantization.layer_input.items()}
    return {weight: float(quantizer.scale) for weight, quantizer in inputs.items() if quantizer.observed}


def _folds(model: nn.Module, example_inputs: Any) -> dict[str, str]:
    args, kwargs = call_arguments(example_inputs, model.forward)
    with torch.no_grad(), recording(model) as tape:
        model(*args, **kwargs)
    layers = {name: None for name, _ in model.named_parameters() if name.endswith("weight")}
    return dict(place(tape, model, layer_bits=layers, bits=None, backend="onnxruntime").folds)


def _fold(layer: nn.Module, norm: nn.Module, weight: IntegerWeight | None) -> None:
    parameter = layer._parameters["weight"]
    if parameter is None:
        raise CompressionError(f"{type(layer).__name__} has no weight that a batch norm could be folded into.")
    factor, shift = biases.folded(norm, layer._parameters.get("bias"))
    if weight is not None:
        weight.rescale(factor.float())
    else:
        shape = [1] * parameter.ndim
        shape[1 if isinstance(layer, _ConvTransposeNd) else 0] = -1
        folded = parameter.detach().double() * factor.reshape(shape)
        layer.register_parameter("weight", nn.Parameter(folded.to(parameter.dtype)))
    layer.register_parameter("bias", nn.Parameter(shift.to(parameter.dtype)))


def _first(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Stands in for a folded batch norm."""
    return x


def _fixed(model: nn.Module, computed: Mapping[str, ComputedWeight], example_inputs: Any) -> dict[str, IntegerWeight]:
    """Let functions be given what computed weights are now; gives those, kept as parameters of the calling modules."""
    args, kwargs = call_arguments(example_inputs, model.forward)
    found: dict[str, IntegerWeight] = {}
    seen: dict[str, dict[str, torch.Tensor]] = {name: {} for name in computed}
    watching = [_each(weight, seen[name].setdefault) for name, weight in computed.items()]
    if watching:
        with torch.no_grad():
            model(*args, **kwargs)
    for handle in watching:
        handle.remove()
    for name, weight in computed.items():
        if seen[name]:
            for attribute, value in seen[name].items():
                weight.module.register_parameter(attribute, nn.Parameter(value.detach().clone()))
            module, (attribute, *bias) = weight.module, seen[name]
            use = Use(module, attribute, module, bias[0] if bias else None)
            parts = weight.integers(value := seen[name][attribute]), weight.scale(value), weight.use.axis
            filling = biases.filling(weight.spec.qmax, weight.spec.narrow)
            found[name] = IntegerWeight(*parts, (use,), weight.spec.group_size, filling)
            _each(weight, partial(_kept, module))
    return found


def _kept(module: nn.Module, attribute: str, computed: torch.Tensor) -> torch.Tensor:
    """What a module keeps instead of what it computes."""
    kept: torch.Tensor = getattr(module, attribute)
    return kept


def _each(weight: ComputedWeight, function: Callable[[str, torch.Tensor], torch.Tensor]) -> CallHandle:
    """Replace a computed weight and its bias by what a function makes of a name and the tensor."""
    at = weight.use.place
    paths = {f"computed_{at.function}_{at.call}": at.path}
    if weight.use.bias is not None:
        paths[f"computed_{at.function}_{at.call}_bias"] = weight.use.bias

    def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for attribute, path in paths.items():
            args, kwargs = replaced_arguments(args, kwargs, [path], partial(function, attribute))
        return args, kwargs

    return on_call(weight.module, CallHook(at.function, at.call, before=before))


def _dequantized(owner: nn.Module, attribute: str, axis: int, block: int) -> torch.Tensor:
    """A parameter that is kept as integer buffers."""
    integers, scale, zero_point = (
        owner._buffers.get(f"{attribute}_{part}") for part in ("integers", "scale", "zero_point")
    )
    return dequantize(integers, scale, zero_point, axis, block)


def _store(name: str, weight: IntegerWeight, input_scale: float | None) -> list[Shadow]:
    """Keep a weight, and its layer's bias where the input is quantized, as integer buffers; gives what reads them."""
    if weight.group_size and weight.integers.ndim != 2:
        raise CompressionError(
            f"{name}: weight_granularity 'group:{weight.group_size}' exports for Linear layers alone, got a weight of "
            f"shape {tuple(weight.integers.shape)}. Give this layer 'channel' in overrides."
        )
    added: dict[Use, torch.Tensor] = {
        use: bias.detach()
        for use in weight.uses
        if use.bias is not None
        and (bias := use.owner._parameters.get(use.bias)) is not None
        and biases.fits(bias, weight.scale.numel() if weight.scale.ndim else None)
    }
    if input_scale is None or weight.scale.ndim > 1:
        added = {}
    if added:
        weight.integers, weight.scale = weight.integers * weight.filling, weight.scale / weight.filling
    for value in added.values():
        _make_room(weight, value, input_scale or 1.0)
    zero_point = torch.zeros_like(weight.scale, dtype=torch.int8)
    axis, block = (1, weight.group_size) if weight.group_size else (weight.axis, 0)
    stored: dict[tuple[nn.Module, str], tuple[int, int]] = {}
    for use in weight.uses:
        owner, attribute = use.owner, use.attribute
        stored[owner, attribute] = (axis, block)
        owner.register_parameter(attribute, None)
        owner.register_buffer(f"{attribute}_integers", weight.integers)
        owner.register_buffer(f"{attribute}_scale", weight.scale)
        owner.register_buffer(f"{attribute}_zero_point", zero_point)
        if use.bias is not None and use in added:
            # float32, as ONNX Runtime's kernels compute it.
            scale = weight.scale * torch.tensor(input_scale, dtype=torch.float32)
            integers = biases.integers_of(added[use], scale).to(torch.int32)
            owner.register_parameter(use.bias, None)
            owner.register_buffer(f"{use.bias}_integers", integers)
            owner.register_buffer(f"{use.bias}_scale", scale)
            stored[owner, use.bias] = (0, 0)
    return [Shadow(*place, partial(_dequantized, *place, *along)) for place, along in stored.items()]


def _make_room(weight: IntegerWeight, bias: torch.Tensor, input_scale: float) -> None:
    """Widen the scale of channels whose bias would overflow int32; their integers are rounded again."""
    scale = biases.with_room(weight.scale, bias, input_scale)
    widened = scale > weight.scale
    if bool(widened.any()):
        shape = [1] * weight.integers.ndim
        if scale.ndim:
            shape[weight.axis] = -1
        ratio = torch.where(widened, weight.scale.double() / scale.double(), 1.0).reshape(shape)
        weight.integers = torch.round(weight.integers.double() * ratio).to(torch.int8)
        weight.scale = scale


def _constant(module: nn.Module, place: Boundary, paths: list[tuple[Key, ...]], quantizer: ActivationQuantizer) -> None:
    scale, zero_point = float(quantizer.scale), int(quantizer.zero_point)
    qmin, qmax = quantizer.qmin, quantizer.qmax

    def apply(x: torch.Tensor) -> torch.Tensor:
        return quantize_dequantize(x, scale, zero_point, qmin, qmax)

    watch(module, place, paths, apply)
