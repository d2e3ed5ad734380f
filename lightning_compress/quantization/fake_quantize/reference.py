"""Fake quantization in plain PyTorch operations: the definition that compiled kernels reproduce to the bit.

It runs on every device and dtype, and is what ``torch.compile`` traces and fuses.
"""

from __future__ import annotations

import torch


def widened(x: torch.Tensor) -> torch.Tensor:
    """``x`` in the dtype of the computation: float32, or float64 for float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    qmin: int,
    qmax: int,
    clip: tuple[float, float] | None = None,
    *,
    mask: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Round to the integer grid and back.

    Args:
        x: Float tensor; float16 and bfloat16 are computed in float32.
        scale: Broadcasts with ``x``.
        zero_point: Broadcasts with ``x``; ``None`` for zero.
        qmin: Smallest integer.
        qmax: Largest integer.
        clip: Values are clipped to this range first.
        mask: Whether to return where the gradient passes.

    Returns:
        The result in the dtype of ``x``, and a bool tensor: where the rounded value needed no clamping, and lay
        strictly between the ends of ``clip``. False for NaN.
    """
    wide = widened(x)
    q = torch.div(wide if clip is None else wide.clamp(*clip), scale).round_()
    if zero_point is not None:
        q.add_(zero_point)
    kept = q.clamp(qmin, qmax)
    inside = None
    if mask:
        inside = kept.eq(q)
        if clip is not None:
            inside = inside & (wide > clip[0]) & (wide < clip[1])
    if zero_point is not None:
        kept.sub_(zero_point)
    return kept.mul_(scale).to(x.dtype), inside


def integers(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, qmin: int, qmax: int
) -> torch.Tensor:
    """``clamp(round_half_even(x / scale) + zero_point, qmin, qmax)``, as float."""
    q = torch.div(widened(x), scale).round_()
    if zero_point is not None:
        q.add_(zero_point)
    return q.clamp_(qmin, qmax)


def pass_inside(grad: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """``grad`` where ``inside``, exactly 0 elsewhere, whatever the gradient is there."""
    return torch.where(inside, grad, torch.zeros((), dtype=grad.dtype, device=grad.device))


def learned_gradient(
    grad: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, qmin: int, qmax: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """LSQ's gradients of ``x``, and elementwise those of the scale.

    Source: Esser et al., Learned Step Size Quantization, ICLR 2020, equations 3 and 5.
    """
    u, g = widened(x) / scale, widened(grad)
    zero = torch.zeros((), dtype=g.dtype, device=g.device)
    inside = (u > qmin) & (u < qmax)
    to_x = torch.where(inside, g, zero).to(x.dtype)
    end = torch.where(u <= qmin, zero + qmin, zero + qmax)
    return to_x, g * torch.where(inside | u.isnan(), u.round() - u, end)


# What backward needs of a value, in six bits: inside the grid the slope of the scale, round(u) - u in [-0.5, 0.5], in
# steps of 1/58; else which end it lies behind, of the grid or, inside of that, of the clip range.
STEPS = 58.0
_BELOW, _CUT_LOW, _CUT_HIGH, _ABOVE = -32, -31, 30, 31


def learn(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    qmin: int,
    qmax: int,
    clip: tuple[float, float] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``quantize``, and what the gradients of ``learned_gradient`` need, in a code of six bits a value.

    Returns:
        The values on the grid; int8 codes: where the gradient of ``x`` passes (strictly inside the grid and ``clip``)
        the slope of the scale in steps of 1/58, -29 to 29; -32 below the grid and for NaN, 31 above; inside of it -31
        at or below the lower end of ``clip``, 30 at or above the upper one.
    """
    wide = widened(x)
    low = qmin if zero_point is None else qmin - zero_point
    high = qmax if zero_point is None else qmax - zero_point
    u = (wide if clip is None else wide.clamp(*clip)) / scale
    rounded = u.round()
    inside = (u > low) & (u < high)
    steps = ((rounded - u) * STEPS).round()
    codes = torch.where(inside, steps, torch.where(u > low, _ABOVE, _BELOW))
    if clip is not None:
        codes = torch.where(inside & (wide <= clip[0]), _CUT_LOW, codes)
        codes = torch.where(inside & (wide >= clip[1]), _CUT_HIGH, codes)
    values = rounded.clamp(qmin, qmax) if zero_point is None else (rounded + zero_point).clamp(qmin, qmax) - zero_point
    return (values * scale).to(x.dtype), codes.to(torch.int8)


def learned_pass(
    grad: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    offset: torch.Tensor | None,
    qmin: int,
    qmax: int,
    clip: tuple[float, float] | None,
    factor: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The gradients of ``x``, scale and offset from the codes of ``learn``; the last two times ``factor``.

    That of the offset is the sum of the gradients outside of the grid (LSQ+, equation 7); as the zero point is made of
    both, the scale's takes ``offset / scale`` of it.
    """
    g = widened(grad)
    below, above = codes == _BELOW, codes == _ABOVE
    inside = (codes > _CUT_LOW) & (codes < _CUT_HIGH)
    ends = _end_slopes(scale, zero_point, qmin, qmax, clip)
    end = torch.where(codes < 0, torch.where(below, ends[0], ends[1]), torch.where(above, ends[3], ends[2]))
    # Summed in float64, so that the order of summation does not show.
    slopes = (g * torch.where(inside, codes.to(g.dtype), end.to(g.dtype))).sum(dtype=torch.float64)
    to_scale, to_offset = slopes * (factor / STEPS), None
    if offset is not None:
        outside = torch.where(below | above, g, torch.zeros((), dtype=g.dtype, device=g.device))
        by_offset = outside.sum(dtype=torch.float64) * factor
        to_scale = to_scale - by_offset * (offset.double() / scale.double())
        to_offset = by_offset.to(offset.dtype)
    return pass_inside(grad, inside), to_scale.to(scale.dtype), to_offset


def _end_slopes(
    scale: torch.Tensor, zero_point: torch.Tensor | None, qmin: int, qmax: int, clip: tuple[float, float] | None
) -> torch.Tensor:
    """Slopes of the scale behind the ends, in steps of 1/58: below, cut low, cut high, above; float32, ``[4]``.

    That of an infinite end of ``clip`` is NaN: no value has its code.
    """
    zero = torch.zeros_like(scale) if zero_point is None else zero_point
    cut = [torch.full_like(scale, end) / scale for end in clip or (0.0, 0.0)]
    return torch.stack([qmin - zero, *(u.round() - u for u in cut), qmax - zero]) * STEPS
