"""The arithmetic of fake quantization in plain PyTorch operations: the definition that compiled kernels reproduce.

It runs on every device and dtype, and is what ``torch.compile`` traces and fuses.
"""

from __future__ import annotations

import torch


def integers(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, qmin: int, qmax: int
) -> torch.Tensor:
    """``clamp(round_half_even(x / scale) + zero_point, qmin, qmax)``, as float; NaN stays NaN.

    Args:
        x: Float tensor; float16 and bfloat16 are computed in float32.
        scale: Broadcasts with ``x``.
        zero_point: Broadcasts with ``x``; ``None`` for zero.
        qmin: Smallest integer.
        qmax: Largest integer.
    """
    q = torch.div(x.to(torch.promote_types(x.dtype, torch.float32)), scale).round_()
    if zero_point is not None:
        q.add_(zero_point)
    return q.clamp_(qmin, qmax)


def fake_quantize(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, qmin: int, qmax: int
) -> torch.Tensor:
    """``(integers - zero_point) * scale`` in the dtype of ``x``."""
    q = integers(x, scale, zero_point, qmin, qmax)
    if zero_point is not None:
        q.sub_(zero_point)
    return q.mul_(scale).to(x.dtype)


def bounds(
    scale: torch.Tensor, zero_point: torch.Tensor | None, qmin: int, qmax: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value that round to an integer of the range: half a step beyond its ends."""
    if zero_point is None:
        return scale * (qmin - 0.5), scale * (qmax + 0.5)
    return ((qmin - 0.5) - zero_point) * scale, ((qmax + 0.5) - zero_point) * scale


def pass_inside(grad: torch.Tensor, x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """``grad`` where ``low <= x <= high``, exactly 0 elsewhere, also where ``x`` is NaN."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.where(
        (wide >= low) & (wide <= high), grad, torch.zeros((), dtype=grad.dtype, device=grad.device)
    )
