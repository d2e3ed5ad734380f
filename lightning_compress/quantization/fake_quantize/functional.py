"""Fake quantization with gradients: one pass over memory forward, one backward, and one bit a value saved between."""

from __future__ import annotations

from typing import Any

import torch

from lightning_compress.quantization.fake_quantize import cpu as native
from lightning_compress.quantization.fake_quantize import reference as eager
from lightning_compress.quantization.fake_quantize.scale_shapes import check_scale, spread_scale
from lightning_compress.quantization.fake_quantize.transforms import straight_through, transformed

Clip = tuple[float, float]


def fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    qmin: int,
    qmax: int,
    *,
    clip: Clip | None = None,
    scratch: torch.Tensor | None = None,
) -> torch.Tensor:
    """Round an activation to its integer grid and back, with a straight-through gradient.

    ``y = (clamp(round_half_even(x / scale) + zero_point, qmin, qmax) - zero_point) * scale``, computed in
    float32: the arithmetic of ONNX's QuantizeLinear and DequantizeLinear.

    The gradient passes where ``round_half_even(x / scale) + zero_point`` lies in the integer range, as in
    ``torch.fake_quantize_per_tensor_affine``, and is exactly 0 elsewhere. NaN gives NaN, and gradient 0. A mask of
    where it passes is all that is kept for backward: neither ``x`` nor the scale, which may change meanwhile.

    Args:
        x: float32, bfloat16 or float16 tensor of any shape and memory format.
        scale: Step of the grid: float32, ``[]``, positive.
        zero_point: Integer that stands for 0.0: float32, ``[]``.
        qmin: Smallest integer.
        qmax: Largest integer.
        clip: Ends that values are clipped to first, with gradient 0 at and beyond them: ``(0, math.inf)`` makes
            this a ReLU and a quantizer in one pass, ``(0, 6)`` a ReLU6.
        scratch: A tensor like ``x``, or ``x`` itself, that is not read any more, by autograd either: the result may
            be written to its memory.

    Returns:
        A tensor of the shape, dtype and memory format of ``x``.

    Example:
        >>> fake_quantize(torch.tensor([-1.0, 0.24, 0.26, 9.0]), torch.tensor(0.5), torch.tensor(0.0), 0, 3)
        tensor([0.0000, 0.0000, 0.5000, 1.5000])
    """
    return _fake_quantize(x, scale, zero_point, qmin, qmax, clip, scratch, observe=False)[0]


def fake_quantize_and_observe(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    qmin: int,
    qmax: int,
    *,
    clip: Clip | None = None,
    scratch: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``fake_quantize``, and in the same pass the smallest and largest value (behind ``clip``).

    The range is that of this tensor; a moving average that takes it in acts from the next call on.

    Returns:
        The result of ``fake_quantize``, and the range: float32, ``[2]``, NaN if there is a NaN.

    Example:
        >>> x = torch.tensor([-1.0, 0.2, 9.0])
        >>> fake_quantize_and_observe(x, torch.tensor(0.5), torch.tensor(0.0), 0, 3)
        (tensor([0.0000, 0.0000, 1.5000]), tensor([-1.,  9.]))
    """
    y, observed = _fake_quantize(x, scale, zero_point, qmin, qmax, clip, scratch, observe=True)
    return y, observed


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
        group_size: Neighbours among the flattened inputs of an output channel that share a scale; the last group
            may be smaller.
        clips: Whether the range may leave weights outside. Then the gradient is 0 there; otherwise it passes
            everywhere and nothing is saved for it.

    Returns:
        A tensor of the shape and dtype of ``w``; 0.0 stays 0.0.

    Raises:
        CompressionError: The scale does not fit the weight.

    Example:
        >>> w = torch.tensor([[0.9, -0.6], [8.0, 0.1]])
        >>> fake_quantize_weight(w, torch.tensor([1.0, 8.0]), 0, -1, 1)
        tensor([[ 1., -1.],
                [ 8.,  0.]])
    """
    check_scale(scale, w.shape, axis, group_size)
    if transformed():
        wide = spread_scale(scale, w.shape, axis, group_size)
        return straight_through(w, *eager.quantize(w, wide, None, qmin, qmax, mask=clips))
    return _FakeQuantizeWeight.apply(w, scale, axis, qmin, qmax, group_size, clips)


def _fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    qmin: int,
    qmax: int,
    clip: Clip | None,
    scratch: torch.Tensor | None,
    *,
    observe: bool,
) -> Any:
    if transformed():
        return straight_through(x, *eager.quantize(x, scale, zero_point, qmin, qmax, clip, mask=True)), None
    if scratch is not None:
        scratch = scratch.detach()
    if torch.is_grad_enabled() and x.requires_grad:
        return _FakeQuantize.apply(x, scale, zero_point, qmin, qmax, clip, observe, scratch)
    y, _, observed = quantize(x, scale, zero_point, qmin, qmax, clip, mask=False, observe=observe, scratch=scratch)
    return y, observed


def quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    qmin: int,
    qmax: int,
    clip: Clip | None,
    *,
    mask: bool,
    observe: bool,
    scratch: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Values on the grid and, where asked for, the mask of the gradient and the observed range; no gradients."""
    if (lib := native.library(x)) is not None and x.numel():
        return native.quantize(lib, x, scale, zero_point, qmin, qmax, clip, mask=mask, observe=observe, scratch=scratch)
    y, inside = eager.quantize(x, scale, zero_point, qmin, qmax, clip, mask=mask)
    observed = None
    if observe:
        ends = torch.stack(torch.aminmax(x.detach())).float()
        observed = ends if clip is None else ends.clamp(*clip)
    return y, inside, observed


class _FakeQuantize(torch.autograd.Function):
    """Saves where the gradient passes: as bool in plain PyTorch, as packed bits (int32) in compiled kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor,
        qmin: int,
        qmax: int,
        clip: Clip | None,
        observe: bool,
        scratch: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        y, inside, observed = quantize(
            x, scale, zero_point, qmin, qmax, clip, mask=True, observe=observe, scratch=scratch
        )
        ctx.save_for_backward(inside)
        ctx.stride = y.stride()
        ctx.set_materialize_grads(False)
        if observed is not None:
            ctx.mark_non_differentiable(observed)
        return y, observed

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None, _: Any) -> Any:
        (inside,) = ctx.saved_tensors
        return None if grad is None else _pass_inside(grad, inside, ctx.stride), *[None] * 7


def _pass_inside(grad: torch.Tensor, inside: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    if inside.dtype == torch.bool:
        return eager.pass_inside(grad, inside)
    return _PassInside.apply(grad, inside, stride)


class _PassInside(torch.autograd.Function):
    """A function of its own, so that gradients of gradients are right (they pass through the same mask)."""

    @staticmethod
    def forward(ctx: Any, grad: torch.Tensor, inside: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
        ctx.save_for_backward(inside)
        ctx.stride = stride
        return native.pass_inside(grad, inside, stride)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        (inside,) = ctx.saved_tensors
        return _PassInside.apply(grad, inside, ctx.stride), None, None


class _FakeQuantizeWeight(torch.autograd.Function):
    """Saves nothing, unless the range clips."""

    @staticmethod
    def forward(
        ctx: Any,
        w: torch.Tensor,
        scale: torch.Tensor,
        axis: int | None,
        qmin: int,
        qmax: int,
        group_size: int | None,
        clips: bool,
    ) -> torch.Tensor:
        y, inside = quantize_weight(w, scale, axis, qmin, qmax, group_size, mask=clips)
        ctx.save_for_backward(*([] if inside is None else [inside]))
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        for inside in ctx.saved_tensors:
            grad = eager.pass_inside(grad, inside)
        return grad, None, None, None, None, None, None


def quantize_weight(
    w: torch.Tensor,
    scale: torch.Tensor,
    axis: int | None,
    qmin: int,
    qmax: int,
    group_size: int | None,
    *,
    mask: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Values on the grid and, where asked for, the bool mask of those inside the range; without gradients."""
    if (lib := native.library(w)) is not None and native.takes_rows(w, scale, axis, group_size):
        return native.quantize_rows(lib, w, scale, axis or 0, qmin, qmax, mask=mask)
    return eager.quantize(w, spread_scale(scale, w.shape, axis, group_size), None, qmin, qmax, mask=mask)
