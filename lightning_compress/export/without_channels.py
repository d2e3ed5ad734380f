"""A copy of a trained model, quantized or not, without the channels and heads that were pruned."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.channels.remove import tensors_of
from lightning_compress.pruning.channels.shrink import Shrunk, apply_shapes, shrink
from lightning_compress.quantization import find, strip


def without_channels(model: nn.Module, example_inputs: Any) -> tuple[nn.Module, Shrunk]:
    """Remove what was pruned with ``pattern="channel"``; quantizers stay, with the scales they have.

    Args:
        model: The model on the CPU; it is not changed.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments.

    Returns:
        The smaller copy, and what :func:`~lightning_compress.pruning.channels.shrink` found in float.

    Raises:
        CompressionError: The smaller model would give other outputs, or weights have scales in groups of inputs.
    """
    scales = _scales(model)
    shrunk = shrink(strip(copy.deepcopy(model)), example_inputs)
    smaller = copy.deepcopy(model)
    before = {name: tensor.detach() for name, tensor in tensors_of(smaller).items()}
    values = {name: before[name].flatten()[index] for name, index in shrunk.kept.items()}
    apply_shapes(smaller, shrunk.shapes)
    for name, tensor in tensors_of(smaller).items():
        tensor.data = values[name]
    kept_quantization = find(smaller)
    if kept_quantization is not None:
        names = kept_quantization.weights.names_in(smaller)
        for name, quantizer in kept_quantization.layers.items():
            if name in names:
                axis = quantizer.channel_axis
                rows = _rows(shrunk.kept[names[name]], before[names[name]].shape, axis)
                quantizer.fixed_scale = _cut(scales[names[name]], rows, names[name])
    return smaller, shrunk


def _scales(model: nn.Module) -> dict[str, Tensor]:
    """Weight's name in the model → its scales."""
    quantization = find(model)
    if quantization is None:
        return {}
    names = quantization.weights.names_in(model)
    return {names[name]: q.scale().detach() for name, q in quantization.layers.items() if name in names}


def _rows(index: Tensor, shape: torch.Size, axis: int) -> Tensor:
    """Positions along ``axis`` in the original of a cut weight's slices, from the flat indices of its entries."""
    first = index.movedim(axis, 0).flatten(1)[:, 0]
    return first // math.prod(shape[axis + 1 :]) % shape[axis]


def _cut(scale: Tensor, rows: Tensor, name: str) -> Tensor:
    if scale.ndim > 1:
        raise CompressionError(
            f"{name} has scales for groups of inputs (weight_granularity='group:…'), which do not outlive the removal "
            "of channels. Use weight_granularity='channel' with pattern='channel'."
        )
    return scale if scale.ndim == 0 else scale[rows]
