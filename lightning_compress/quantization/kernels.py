"""Fake quantization with gradients: one pass over memory forward, one backward, saving nothing but the input."""

from __future__ import annotations

import math
from typing import Any

import torch

from lightning_compress.errors import CompressionError
from lightning_compress.quantization import eager


def fake_quantize(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, qmin: int, qmax: int
) -> torch.Tensor:
    """Round an activation to its integer grid and back, with a straight-through gradient.

    ``y = (clamp(round_half_even(x / scale) + zero_point, qmin, qmax) - zero_point) * scale``, computed in float32:
    the arithmetic of ONNX's QuantizeLinear and DequantizeLinear.

    The gradient passes where ``(qmin - zero_point - 1/2) * scale <= x <= (qmax - zero_point + 1/2) * scale``, that is
    where rounding moves ``x`` by at most half a step, and is exactly 0 elsewhere. NaN gives NaN and no gradient.

    Args:
        x: float32, bfloat16 or float16 tensor of any shape and memory format.
        scale: Step of the grid: float32, ``[]``, positive.
        zero_point: Integer that stands for 0.0: float32, ``[]``.
        qmin: Smallest integer.
        qmax: Largest integer.

    Returns:
        A tensor of the shape, dtype and memory format of ``x``.

    Example:
        >>> fake_quantize(torch.tensor([-1.0, 0.24, 0.26, 9.0]), torch.tensor(0.5), torch.tensor(0.0), 0, 3)
        tensor([0.0000, 0.0000, 0.5000, 1.5000])
    """
    return _FakeQuantize.apply(x, scale, zero_point, qmin, qmax)  # type: ignore[no-any-return]


def fake_quantize_weight(
    w: torch.Tensor,
    scale: torch.Tensor,
    axis: int | None,
    qmin: int,
    qmax: int,
    *,
    group_size: int | None = None,
    clips: bool = False,
) -> torch.Tensor:
    """Round a weight to its symmetric integer grid and back, with a straight-through gradient.

    Args:
        w: Float weight.
        scale: float32: ``[]``, ``[C]`` along ``axis``, or ``[C, groups]`` with ``group_size``.
        axis: Dimension of the output channels; ``None`` with a single scale.
        qmin: Smallest integer.
        qmax: Largest integer.
        group_size: Neighbours among the flattened inputs of an output channel that share a scale; the last group may
            be smaller.
        clips: Whether the range may leave weights outside. Then the gradient is 0 there; otherwise it passes
            everywhere and nothing is saved for it.

    Returns:
        A tensor of the shape and dtype of ``w``; 0.0 stays 0.0.

    Raises:
        CompressionError: The scale does not fit the weight.

    Example:
        >>> fake_quantize_weight(torch.tensor([[0.9, -0.4], [8.0, 0.1]]), torch.tensor([1.0, 8.0]), 0, -1, 1)
        tensor([[1., -0.],
                [8., 0.]])
    """
    wide = spread_scale(scale, w.shape, axis, group_size)
    return _FakeQuantizeWeight.apply(w, wide, qmin, qmax, clips)  # type: ignore[no-any-return]


def quantize_integers(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    axis: int | None,
    qmin: int,
    qmax: int,
    *,
    group_size: int | None = None,
) -> torch.Tensor:
    """The integers behind a fake-quantized tensor: int8 where the range allows, else uint8.

    Args:
        x: Float tensor without NaN.
        scale: As in ``fake_quantize`` and ``fake_quantize_weight``.
        zero_point: float32 that broadcasts with ``scale``, or ``None`` for zero.
        axis: Dimension of the channels; ``None`` with a single scale.
        qmin: Smallest integer.
        qmax: Largest integer.
        group_size: As in ``fake_quantize_weight``.

    Raises:
        CompressionError: The tensor holds NaN, or the scale does not fit it.

    Example:
        >>> quantize_integers(torch.tensor([-1.0, 0.26, 9.0]), torch.tensor(0.5), None, None, -3, 3)
        tensor([-2,  1,  3], dtype=torch.int8)
    """
    if x.isnan().any():
        raise CompressionError(f"A tensor of shape {tuple(x.shape)} holds NaN: no integer stands for it.")
    wide = spread_scale(scale, x.shape, axis, group_size)
    q = eager.integers(x, wide, zero_point, qmin, qmax)
    return q.to(torch.int8 if qmin >= -128 and qmax <= 127 else torch.uint8)


def quantize_weight_integers(
    w: torch.Tensor,
    scale: torch.Tensor,
    axis: int | None,
    qmin: int,
    qmax: int,
    *,
    group_size: int | None = None,
) -> torch.Tensor:
    """``quantize_integers`` with zero point 0: int8, the shape of ``w``."""
    return quantize_integers(w, scale, None, axis, qmin, qmax, group_size=group_size)


def spread_scale(
    scale: torch.Tensor, shape: torch.Size, axis: int | None, group_size: int | None = None
) -> torch.Tensor:
    """Reshape or repeat scales so that they broadcast with the tensor they belong to.

    Raises:
        CompressionError: The scales do not fit the shape.

    Example:
        >>> spread_scale(torch.ones(8), torch.Size([8, 3, 3, 3]), 0).shape
        torch.Size([8, 1, 1, 1])
    """
    if scale.ndim == 0:
        return scale
    if axis is None:
        raise CompressionError(f"A scale of shape {tuple(scale.shape)} needs an axis, got None.")
    channels = shape[axis]
    if scale.ndim == 1 and group_size is None and scale.shape[0] == channels:
        return scale.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
    inputs = math.prod(shape) // max(channels, 1)
    groups = None if group_size is None else -(-inputs // group_size)
    if group_size is None or tuple(scale.shape) != (channels, groups):
        wanted = (
            f"[{channels}]" if group_size is None else f"[{channels}, {groups}] for groups of {group_size}"
        )
        raise CompressionError(
            f"The scale of a tensor of shape {tuple(shape)} along axis {axis}: expected shape [] or {wanted}, "
            f"got {tuple(scale.shape)}."
        )
    rest = [size for i, size in enumerate(shape) if i != axis % len(shape)]
    wide = scale.repeat_interleave(group_size, 1)[:, :inputs]
    return wide.reshape([channels, *rest]).movedim(0, axis)


class _FakeQuantize(torch.autograd.Function):
    """Saves the input and the bounds between which the gradient passes."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, qmin: int, qmax: int
    ) -> torch.Tensor:
        # Bounds, not the scale itself: an observer may change the scale in place before backward runs.
        ctx.save_for_backward(x, *eager.bounds(scale, zero_point, qmin, qmax))
        return eager.fake_quantize(x, scale, zero_point, qmin, qmax)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, low, high = ctx.saved_tensors
        return eager.pass_inside(grad, x, low, high), None, None, None, None


class _FakeQuantizeWeight(torch.autograd.Function):
    """Saves nothing, unless the range clips."""

    @staticmethod
    def forward(
        ctx: Any, w: torch.Tensor, scale: torch.Tensor, qmin: int, qmax: int, clips: bool
    ) -> torch.Tensor:
        ctx.clips = clips
        if clips:
            ctx.save_for_backward(w, *eager.bounds(scale, None, qmin, qmax))
        return eager.fake_quantize(w, scale, None, qmin, qmax)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        if ctx.clips:
            grad = eager.pass_inside(grad, *ctx.saved_tensors)
        return grad, None, None, None, None
