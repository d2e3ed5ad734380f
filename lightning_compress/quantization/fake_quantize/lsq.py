"""Learned step sizes: LSQ (Esser et al., ICLR 2020) and the offset of LSQ+ (Bhalgat et al., 2020)."""

from __future__ import annotations

import math
from typing import Any

import torch

from lightning_compress.quantization.fake_quantize import cpu as native
from lightning_compress.quantization.fake_quantize import functional as kernels
from lightning_compress.quantization.fake_quantize import reference as eager
from lightning_compress.quantization.fake_quantize.scale_shapes import check_scale, spread_scale
from lightning_compress.quantization.fake_quantize.step_memory import StepMemory
from lightning_compress.quantization.fake_quantize.transforms import learned, transformed

# A scale at or below zero counts as this; its gradient can bring it back.
_SMALLEST_SCALE = 2.0**-40


def learned_fake_quantize(
    x: torch.Tensor, scale: torch.Tensor, qmin: int, qmax: int, grad_scale: float, *, axis: int = 0
) -> torch.Tensor:
    """Round to the integer grid and back, with a gradient for the scale.

    With ``v = x / scale``, the gradient of the scale is the sum over ``grad * (round(v) - v)`` where
    ``qmin < v < qmax``, ``grad * qmin`` below and ``grad * qmax`` above, times ``grad_scale``; that of ``x`` passes
    strictly between ``qmin`` and ``qmax`` (LSQ, equations 3 and 5).

    Args:
        x: Float tensor.
        scale: float32: ``[]``, or ``[C]`` along ``axis``. One at or below zero counts as 2^-40.
        qmin: Smallest integer.
        qmax: Largest integer.
        grad_scale: Factor of the gradient of the scale: ``gradient_scale`` gives the paper's.
        axis: Dimension of the channels.

    Returns:
        A tensor of the shape and dtype of ``x``: the values of ``kernels.fake_quantize``.

    Raises:
        CompressionError: The scale does not fit ``x``.

    Example:
        >>> s = torch.tensor(1.0, requires_grad=True)
        >>> learned_fake_quantize(torch.tensor([0.3, 5.0]), s, -3, 3, 1.0).sum().backward()
        >>> s.grad
        tensor(2.7000)
    """
    check_scale(scale, x.shape, axis, None)
    if transformed():
        return learned(x, spread_scale(scale.clamp_min(_SMALLEST_SCALE), x.shape, axis), qmin, qmax, grad_scale)
    return _LearnedFakeQuantize.apply(x, scale, qmin, qmax, grad_scale, axis)


def learned_activation(
    x: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
    qmin: int,
    qmax: int,
    grad_scale: float,
    *,
    clip: kernels.Clip | None = None,
    scratch: torch.Tensor | None = None,
    memory: StepMemory | None = None,
) -> torch.Tensor:
    """``learned_fake_quantize`` with a single scale and an offset, which keeps 6.4 bits a value instead of ``x``.

    The zero point is ``learned_zero_point(offset, scale, qmin, qmax)``, whose rounding and clamping gradients pass
    straight through; the grid's ends then lie at ``qmin - zero_point`` and ``qmax - zero_point``. The gradient of the
    offset is the sum over ``grad`` outside of the grid, times ``grad_scale``.

    Values and the gradient of ``x`` are exact. For the gradient of the scale, ``round(v) - v`` is kept in steps of
    1/58, so it differs from the formula by at most ``grad_scale * sum(|grad|) / 116``, and as roundings cancel, by far
    less than the noise of a batch; the activations of a network then take a fifth more memory, not twice as much.

    Args:
        x: Float tensor.
        scale: float32, ``[]``.
        offset: Smallest value of the range, in the unit of ``x``: float32, ``[]``; ``None`` for zero point 0.
        qmin: Smallest integer.
        qmax: Largest integer.
        grad_scale: Factor of the gradients of scale and offset.
        clip: As in ``kernels.fake_quantize``.
        scratch: As in ``kernels.fake_quantize``.
        memory: Where compiled kernels keep what backward needs; new memory at each call by default.

    Example:
        >>> s = torch.tensor(1.0, requires_grad=True)
        >>> learned_activation(torch.tensor([0.25, 5.0]), s, None, -3, 3, 1.0).sum().backward()
        >>> s.grad
        tensor(2.7500)
    """
    check_scale(scale, x.shape, None, None)
    if scratch is not None:
        scratch = scratch.detach()
    if transformed():
        scale = scale.clamp_min(_SMALLEST_SCALE)
        low: int | torch.Tensor = qmin
        high: int | torch.Tensor = qmax
        if offset is not None:
            offset = offset * grad_scale + (offset - offset * grad_scale).detach()
            exact = qmin - offset / scale
            zero_point = exact + (exact.round().clamp(qmin, qmax) - exact).detach()
            low, high = qmin - zero_point, qmax - zero_point
        return learned(x if clip is None else x.clamp(*clip), scale, low, high, grad_scale)
    return _LearnedActivation.apply(x, scale, offset, qmin, qmax, grad_scale, clip, scratch, memory)


def learned_zero_point(offset: torch.Tensor, scale: torch.Tensor, qmin: int, qmax: int) -> torch.Tensor:
    """The integer zero point of a learned offset: ``clamp(round(qmin - offset / scale), qmin, qmax)``.

    An offset in the unit of the values, as in LSQ+, learns at the pace of the scale; its rounding keeps 0.0 exact.

    Args:
        offset: The smallest value of the range: float32, ``[]``.
        scale: float32, ``[]``.
        qmin: Smallest integer.
        qmax: Largest integer.

    Example:
        >>> learned_zero_point(torch.tensor(-1.1), torch.tensor(0.5), 0, 15)
        tensor(2.)
    """
    return (qmin - offset / scale.clamp_min(_SMALLEST_SCALE)).round_().clamp_(qmin, qmax)


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


class _LearnedFakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scale: torch.Tensor, qmin: int, qmax: int, grad_scale: float, axis: int
    ) -> torch.Tensor:
        scale = scale.clamp_min(_SMALLEST_SCALE)
        ctx.save_for_backward(x, scale)
        ctx.settings = qmin, qmax, grad_scale, axis
        return kernels.quantize_weight(x, scale, axis, qmin, qmax, None, mask=False)[0]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, scale = ctx.saved_tensors
        qmin, qmax, grad_scale, axis = ctx.settings
        if (lib := native.library(x)) is not None and x.numel():
            to_x, to_scale = native.learned_gradient(lib, grad, x, scale, axis, qmin, qmax, grad_scale)
        else:
            to_x, slopes = eager.learned_gradient(grad, x, spread_scale(scale, x.shape, axis), qmin, qmax)
            dims = [i for i in range(x.ndim) if scale.ndim == 0 or i != axis % x.ndim]
            # Summed in float64, so that the order of summation does not show.
            to_scale = slopes.sum(dims, dtype=torch.float64) * grad_scale
        return to_x, to_scale.to(scale.dtype), *[None] * 4


class _LearnedActivation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        offset: torch.Tensor | None,
        qmin: int,
        qmax: int,
        grad_scale: float,
        clip: kernels.Clip | None,
        scratch: torch.Tensor | None,
        memory: StepMemory | None,
    ) -> torch.Tensor:
        if (lib := native.library(x)) is not None and x.numel():
            y, codes, grid = native.learn(lib, x, scale, offset, qmin, qmax, clip, scratch, memory)
            ctx.save_for_backward(codes, grid, offset)
        else:
            zero_point = None if offset is None else learned_zero_point(offset, scale, qmin, qmax)
            scale = scale.clamp_min(_SMALLEST_SCALE)
            y, codes = eager.learn(x, scale, zero_point, qmin, qmax, clip)
            ctx.save_for_backward(codes, scale, offset, zero_point)
        ctx.settings = qmin, qmax, clip, grad_scale
        ctx.stride = y.stride()
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        if ctx.saved_tensors[0].dtype == torch.int32:
            codes, grid, offset = ctx.saved_tensors
            gradients = native.learned_pass(grad, codes, grid, offset, *ctx.settings, stride=ctx.stride)
        else:
            codes, scale, offset, zero_point = ctx.saved_tensors
            gradients = eager.learned_pass(grad, codes, scale, zero_point, offset, *ctx.settings)
        return *gradients, *[None] * 6
