"""Learned step sizes: LSQ (Esser et al., ICLR 2020) and the offset of LSQ+ (Bhalgat et al., 2020)."""

from __future__ import annotations

import math
from typing import Any

import torch

from lightning_compress.errors import CompressionError
from lightning_compress.quantization import eager, kernels, native
from lightning_compress.quantization.step_memory import StepMemory

# A step that an optimizer drove to or below zero counts as this; its gradient can bring it back.
_SMALLEST_SCALE = 2.0**-40


def learned_fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    qmin: int,
    qmax: int,
    grad_scale: float,
    *,
    axis: int = 0,
) -> torch.Tensor:
    """Round to the integer grid and back, with gradients for the scale and the zero point.

    With ``v = x / scale`` and ``low, high = qmin - zero_point, qmax - zero_point``, the gradient of the scale is the
    sum over ``grad * (round(v) - v)`` where ``low < v < high``, ``grad * low`` below and ``grad * high`` above, times
    ``grad_scale``; that of ``x`` passes strictly between ``low`` and ``high`` (LSQ, equations 3 and 5). That of the
    zero point is the sum over ``-grad * scale`` outside, times ``grad_scale``.

    Args:
        x: Float tensor.
        scale: float32: ``[]``, or ``[C]`` along ``axis``.
        zero_point: float32 holding an integer, ``[]``, as ``learned_zero_point`` gives; ``None`` for zero, which
            scales per channel need.
        qmin: Smallest integer.
        qmax: Largest integer.
        grad_scale: Factor of the gradients of scale and zero point: ``gradient_scale`` gives the paper's.
        axis: Dimension of the channels.

    Returns:
        A tensor of the shape and dtype of ``x``: the values of ``kernels.fake_quantize``.

    Raises:
        CompressionError: The scale does not fit ``x``, or comes per channel together with a zero point.

    Example:
        >>> s = torch.tensor(1.0, requires_grad=True)
        >>> learned_fake_quantize(torch.tensor([0.3, 5.0]), s, None, -3, 3, 1.0).sum().backward()
        >>> s.grad
        tensor(2.7000)
    """
    kernels.check_scale(scale, x.shape, axis, None)
    if scale.ndim and zero_point is not None:
        raise CompressionError(
            f"learned_fake_quantize: expected a scale of shape () beside a zero point, got {tuple(scale.shape)}."
        )
    return _LearnedFakeQuantize.apply(x, scale, zero_point, qmin, qmax, grad_scale, axis)


def learned_activation(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    qmin: int,
    qmax: int,
    grad_scale: float,
    *,
    clip: kernels.Clip | None = None,
    scratch: torch.Tensor | None = None,
    memory: StepMemory | None = None,
) -> torch.Tensor:
    """``learned_fake_quantize`` with a single scale, which keeps 6.4 bits a value for backward instead of ``x``.

    Values and the gradient of ``x`` are the same to the bit. For the gradient of the scale, ``round(v) - v`` is kept
    in steps of 1/58, so it differs from the formula by at most ``grad_scale * sum(|grad|) / 116``, and as roundings
    cancel, by far less than the noise of a batch; the activations of a network then take a fifth more memory, not twice
    as much.

    Args:
        x: Float tensor.
        scale: float32, ``[]``.
        zero_point: float32 holding an integer, ``[]``; ``None`` for zero.
        qmin: Smallest integer.
        qmax: Largest integer.
        grad_scale: Factor of the gradients of scale and zero point.
        clip: As in ``kernels.fake_quantize``.
        scratch: As in ``kernels.fake_quantize``.
        memory: Where compiled kernels keep what backward needs; new memory at each call by default.

    Example:
        >>> s = torch.tensor(1.0, requires_grad=True)
        >>> learned_activation(torch.tensor([0.25, 5.0]), s, None, -3, 3, 1.0).sum().backward()
        >>> s.grad
        tensor(2.7500)
    """
    kernels.check_scale(scale, x.shape, None, None)
    if scratch is not None:
        scratch = scratch.detach()
    return _LearnedActivation.apply(x, scale, zero_point, qmin, qmax, grad_scale, clip, scratch, memory)


def learned_zero_point(offset: torch.Tensor, scale: torch.Tensor, qmin: int, qmax: int) -> torch.Tensor:
    """The integer zero point of a learned offset: ``clamp(round(qmin - offset / scale), qmin, qmax)``.

    An offset in the unit of the values, as in LSQ+, learns at the pace of the scale; its rounding keeps 0.0 exact.
    Gradients pass straight through rounding and clamping, to the offset and to the scale.

    Args:
        offset: The smallest value of the range: float32, ``[]``.
        scale: float32, ``[]``.
        qmin: Smallest integer.
        qmax: Largest integer.

    Example:
        >>> learned_zero_point(torch.tensor(-1.1), torch.tensor(0.5), 0, 15)
        tensor(2.)
    """
    return _LearnedZeroPoint.apply(offset, scale, qmin, qmax)


def gradient_scale(values: int, qmax: int) -> float:
    """LSQ's factor for the gradient of a step: ``1 / sqrt(values * qmax)``.

    Args:
        values: Weights, or features of one example, that share the step.
        qmax: Largest integer of the grid, counted from the zero point.

    Example:
        >>> gradient_scale(100, 4)
        0.05
    """
    return 1 / math.sqrt(max(values, 1) * qmax)


def initial_scale(x: torch.Tensor, qmax: int, axis: int | None = None) -> torch.Tensor:
    """LSQ's first step: ``2 * mean(|x|) / sqrt(qmax)``; 1 where all values are 0.

    Args:
        x: Float tensor.
        qmax: Largest integer.
        axis: Dimension with a step for each channel; ``None`` for a single step.

    Returns:
        float32, ``[]`` or ``[C]``.

    Example:
        >>> initial_scale(torch.tensor([-1.0, 3.0]), 4)
        tensor(2.)
    """
    magnitude = x.detach().float().abs()
    if axis is not None:
        magnitude = magnitude.movedim(axis, 0).flatten(1)
    scale = magnitude.mean(-1 if axis is not None else None) * (2 / math.sqrt(qmax))
    return torch.where(scale > 0, scale.clamp_min(_SMALLEST_SCALE), 1.0)


class _LearnedFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor | None,
        qmin: int,
        qmax: int,
        grad_scale: float,
        axis: int,
    ) -> torch.Tensor:
        scale = scale.clamp_min(_SMALLEST_SCALE)
        ctx.save_for_backward(x, scale, zero_point)
        ctx.settings = qmin, qmax, grad_scale, axis
        if zero_point is None:
            return kernels.quantize_weight(x, scale, axis, qmin, qmax, None, mask=False)[0]
        return kernels.quantize(x, scale, zero_point, qmin, qmax, None, mask=False, observe=False)[0]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, scale, zero_point = ctx.saved_tensors
        qmin, qmax, grad_scale, axis = ctx.settings
        if (lib := native.library(x)) is not None and x.numel():
            to_x, to_scale, to_zero = native.learned_gradient(lib, grad, x, scale, zero_point, axis, qmin, qmax)
        else:
            spread = kernels.spread_scale(scale, x.shape, axis)
            to_x, by_scale, by_zero = eager.learned_gradient(grad, x, spread, zero_point, qmin, qmax)
            dims = [i for i in range(x.ndim) if scale.ndim == 0 or i != axis % x.ndim]
            # Summed in float64, so that the order of summation does not show.
            to_scale, to_zero = (g.sum(dims, dtype=torch.float64) for g in (by_scale, by_zero))
        return (
            to_x,
            (to_scale * grad_scale).to(scale.dtype),
            None if zero_point is None else (to_zero * grad_scale).to(zero_point.dtype),
            *[None] * 4,
        )


class _LearnedActivation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor | None,
        qmin: int,
        qmax: int,
        grad_scale: float,
        clip: kernels.Clip | None,
        scratch: torch.Tensor | None,
        memory: StepMemory | None,
    ) -> torch.Tensor:
        scale = scale.clamp_min(_SMALLEST_SCALE)
        if (lib := native.library(x)) is not None and x.numel():
            y, codes = native.learn(lib, x, scale, zero_point, qmin, qmax, clip, scratch, memory)
        else:
            y, codes = eager.learn(x, scale, zero_point, qmin, qmax, clip)
        ctx.save_for_backward(codes, scale, zero_point)
        ctx.settings = qmin, qmax, grad_scale, clip, y.stride()
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        codes, scale, zero_point = ctx.saved_tensors
        qmin, qmax, grad_scale, clip, stride = ctx.settings
        ends = eager.end_slopes(scale, zero_point, qmin, qmax, clip)
        if codes.dtype == torch.int8:
            to_x, slopes, outside = eager.learned_pass(grad, codes, ends)
        else:
            to_x, slopes, outside = native.learned_pass(grad, codes, ends, zero_point is not None, stride)
        return (
            to_x,
            (slopes * (grad_scale / eager.STEPS)).to(scale.dtype),
            None if zero_point is None else (outside * -scale.double() * grad_scale).to(zero_point.dtype),
            *[None] * 6,
        )


class _LearnedZeroPoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, offset: torch.Tensor, scale: torch.Tensor, qmin: int, qmax: int) -> torch.Tensor:
        scale = scale.clamp_min(_SMALLEST_SCALE)
        ctx.save_for_backward(offset, scale)
        return (qmin - offset / scale).round_().clamp_(qmin, qmax)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        offset, scale = ctx.saved_tensors
        return -grad / scale, grad * offset / (scale * scale), None, None
