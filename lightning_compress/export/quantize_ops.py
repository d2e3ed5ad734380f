"""Two custom operators that stand for ONNX's QuantizeLinear and DequantizeLinear in an exported program."""

from __future__ import annotations

import torch


@torch.library.custom_op("lightning_compress::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: torch.Tensor, scale: float, zero_point: int, qmin: int, qmax: int) -> torch.Tensor:
    """Round an activation to its integer grid: ``(clamp(round(x / scale) + zero_point) - zero_point) * scale``.

    Args:
        x: Float tensor.
        scale: Step of the grid.
        zero_point: Integer that stands for 0.0.
        qmin: Smallest integer.
        qmax: Largest integer.
    """
    integers = torch.clamp(torch.round(x / scale) + zero_point, qmin, qmax)
    return (integers - zero_point) * scale


@quantize_dequantize.register_fake
def _(x: torch.Tensor, scale: float, zero_point: int, qmin: int, qmax: int) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("lightning_compress::dequantize", mutates_args=())
def dequantize(
    integers: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, axis: int, block: int
) -> torch.Tensor:
    """Turn stored integers into floats: ``integers * scale``.

    Args:
        integers: int8 or int32 tensor.
        scale: float32: ``[]``, ``[C]`` along ``axis``, or with blocks the integers' shape with ``axis`` divided.
        zero_point: Zeros in the scale's shape and the integers' dtype, which ONNX Runtime wants to see for int8.
        axis: Dimension of the scales.
        block: Neighbours along ``axis`` that share a scale; 0 without blocks.
    """
    if block:
        return integers * scale.repeat_interleave(block, axis).narrow(axis, 0, integers.shape[axis])
    if scale.ndim == 1:
        shape = [1] * integers.ndim
        shape[axis] = -1
        scale = scale.reshape(shape)
    return integers * scale


@dequantize.register_fake
def _(
    integers: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, axis: int, block: int
) -> torch.Tensor:
    return torch.empty_like(integers, dtype=scale.dtype)
