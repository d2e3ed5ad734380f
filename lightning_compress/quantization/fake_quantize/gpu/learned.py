"""Triton kernels of learned step sizes for activations: LSQ with the offset of LSQ+.

What backward needs is kept in a byte a value: the codes of ``reference.learn``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightning_compress.quantization.fake_quantize.gpu.activations import BLOCK, PROGRAMS, programs
from lightning_compress.quantization.fake_quantize.gpu.arithmetic import (
    EXACT,
    SMALLEST_LEARNED,
    clamp,
    halves,
    round_even,
    wide,
)

_BELOW, _CUT_LOW, _CUT_HIGH, _ABOVE = tl.constexpr(-32), tl.constexpr(-31), tl.constexpr(30), tl.constexpr(31)
_STEPS = tl.constexpr(58.0)


@triton.jit
def _learn(
    x_ptr, y_ptr, codes_ptr, grid_ptr, raw_scale_ptr, shift_ptr, width_ptr, range_ptr, n, qmin, qmax,
    clip_low, clip_high, OFFSET: tl.constexpr, CLIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    scale = tl.load(raw_scale_ptr)
    scale = tl.where(scale < SMALLEST_LEARNED, SMALLEST_LEARNED, scale)
    zero = scale * 0.0
    if OFFSET:
        offset = tl.load(shift_ptr) * tl.load(width_ptr)
        zero = clamp(round_even(qmin - tl.div_rn(offset, scale)), qmin, qmax)
    first = tl.load(range_ptr)
    unknown = first != first  # No range yet: values pass.
    if tl.program_id(0) == 0:
        tl.store(grid_ptr, scale)
        tl.store(grid_ptr + 1, zero)
        tl.store(grid_ptr + 2, tl.load(raw_scale_ptr))
    low, high = qmin - zero, qmax - zero
    for block in range(tl.program_id(0).to(tl.int64), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        at = block * BLOCK + tl.arange(0, BLOCK)
        there = at < n
        raw = tl.load(x_ptr + at, mask=there, other=0).to(tl.float32)
        v = raw
        if CLIP:
            v = clamp(raw, clip_low, clip_high)
        u = tl.div_rn(v, scale)
        rounded = round_even(u)
        inside = (u > low) & (u < high)
        steps = round_even((rounded - u) * _STEPS)
        code = tl.where(inside, steps, tl.where(u > low, _ABOVE * 1.0, _BELOW * 1.0))
        if CLIP:
            code = tl.where(inside & (raw <= clip_low), _CUT_LOW * 1.0, code)
            code = tl.where(inside & (raw >= clip_high), _CUT_HIGH * 1.0, code)
        code = tl.where(unknown, 0.0, code)
        y = (clamp(rounded + zero, qmin, qmax) - zero) * scale
        tl.store(y_ptr + at, tl.where(unknown, v, y).to(y_ptr.dtype.element_ty), mask=there)
        tl.store(codes_ptr + at, code.to(tl.int8), mask=there)


@triton.jit
def _learned_pass(
    grad_ptr, codes_ptr, out_ptr, sums_ptr, grid_ptr, n, qmin, qmax, clip_low, clip_high, BLOCK: tl.constexpr
):
    scale, zero = tl.load(grid_ptr), tl.load(grid_ptr + 1)
    below, above = (qmin - zero) * _STEPS, (qmax - zero) * _STEPS
    cut_low, cut_high = tl.div_rn(clip_low, scale), tl.div_rn(clip_high, scale)
    cut_low = (round_even(cut_low) - cut_low) * _STEPS
    cut_high = (round_even(cut_high) - cut_high) * _STEPS
    to_scale = tl.zeros((BLOCK,), dtype=tl.float64)
    to_zero = tl.zeros((BLOCK,), dtype=tl.float64)
    for block in range(tl.program_id(0).to(tl.int64), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        at = block * BLOCK + tl.arange(0, BLOCK)
        there = at < n
        grad = tl.load(grad_ptr + at, mask=there, other=0).to(tl.float32)
        code = tl.load(codes_ptr + at, mask=there, other=0).to(tl.int32)
        inside = (code > _CUT_LOW) & (code < _CUT_HIGH)
        outside = (code == _BELOW) | (code == _ABOVE)
        end = tl.where(code < 0, tl.where(code == _BELOW, below, cut_low), tl.where(code == _ABOVE, above, cut_high))
        slope = tl.where(inside, code.to(tl.float32), end)
        to_scale += tl.where(there, grad * slope, 0.0).to(tl.float64)
        to_zero += tl.where(there & outside, grad, 0.0).to(tl.float64)
        tl.store(out_ptr + at, tl.where(inside, grad, 0.0).to(out_ptr.dtype.element_ty), mask=there)
    tl.store(sums_ptr + 2 * tl.program_id(0), tl.sum(to_scale, 0))
    tl.store(sums_ptr + 2 * tl.program_id(0) + 1, tl.sum(to_zero, 0))


@triton.jit
def _sum_up(
    sums_ptr, count, grid_ptr, shift_ptr, width_ptr, scale_grad_ptr, shift_grad_ptr, factor_high, factor_low,
    OFFSET: tl.constexpr, ADD_SCALE: tl.constexpr, ADD_SHIFT: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    at = tl.arange(0, PROGRAMS)
    there = at < count
    factor = wide(factor_high, factor_low)
    to_scale = tl.sum(tl.load(sums_ptr + 2 * at, mask=there, other=0.0), 0) * (factor / 58.0)
    if OFFSET:
        offset = tl.load(shift_ptr) * tl.load(width_ptr)
        to_offset = tl.sum(tl.load(sums_ptr + 2 * at + 1, mask=there, other=0.0), 0) * factor
        to_scale -= to_offset * (offset.to(tl.float64) / tl.load(grid_ptr).to(tl.float64))
        by_shift = to_offset.to(tl.float32) * tl.load(width_ptr)
        if ADD_SHIFT:
            by_shift += tl.load(shift_grad_ptr)
        tl.store(shift_grad_ptr, by_shift)
    by_scale = to_scale.to(tl.float32) * tl.load(grid_ptr + 2)
    if ADD_SCALE:
        by_scale += tl.load(scale_grad_ptr)
    tl.store(scale_grad_ptr, by_scale)


def learn(
    x: torch.Tensor,
    y: torch.Tensor,
    log_scale: torch.Tensor,
    shift: torch.Tensor | None,
    width: torch.Tensor,
    range_: torch.Tensor,
    qmin: int,
    qmax: int,
    clip: tuple[float, float] | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write ``x`` on its learned grid to ``y``: two launches, the first of which is ``torch.exp`` of the scale.

    Returns:
        Codes, int8 in the order of memory; and scale, zero point and scale before it was kept from zero, float32.
    """
    n = x.numel()
    codes = torch.empty(n, dtype=torch.int8, device=x.device)
    grid = torch.empty(3, dtype=torch.float32, device=x.device)
    raw = log_scale.detach().exp()
    _learn[(programs(n),)](
        x, y, codes, grid, raw, width if shift is None else shift, width, range_, n, float(qmin), float(qmax),
        *(clip or (0.0, 0.0)), OFFSET=shift is not None, CLIP=clip is not None, BLOCK=BLOCK, **EXACT,
    )  # fmt: skip
    return codes, grid


def learned_pass(
    grad: torch.Tensor,
    codes: torch.Tensor,
    grid: torch.Tensor,
    shift: torch.Tensor | None,
    width: torch.Tensor,
    out: torch.Tensor,
    scale_grad: torch.Tensor,
    shift_grad: torch.Tensor | None,
    factor: float,
    qmin: int,
    qmax: int,
    clip: tuple[float, float] | None,
    add: tuple[bool, bool],
) -> None:
    """Write the gradient of ``x`` to ``out``, and write or add those of log scale and shift: two launches.

    Args:
        grad: Gradient of the values on the grid.
        codes: From ``learn``.
        grid: From ``learn``.
        shift: As for ``learn``.
        width: As for ``learn``.
        out: Where the gradient of ``x`` goes.
        scale_grad: Gradient of the log scale: float32, ``[]``.
        shift_grad: Gradient of the shift: float32, ``[]``.
        factor: LSQ's factor of the gradients.
        qmin: Smallest integer.
        qmax: Largest integer.
        clip: As for ``learn``.
        add: Whether ``scale_grad`` and ``shift_grad`` hold gradients to add to.
    """
    n, count = grad.numel(), programs(grad.numel())
    sums = torch.empty(2 * count, dtype=torch.float64, device=grad.device)
    _learned_pass[(count,)](
        grad, codes, out, sums, grid, n, float(qmin), float(qmax), *(clip or (0.0, 0.0)), BLOCK=BLOCK, **EXACT
    )
    _sum_up[(1,)](
        sums, count, grid, width if shift is None else shift, width, scale_grad,
        scale_grad if shift_grad is None else shift_grad, *halves(factor),
        OFFSET=shift is not None, ADD_SCALE=add[0], ADD_SHIFT=add[1], PROGRAMS=PROGRAMS, **EXACT,
    )  # fmt: skip
