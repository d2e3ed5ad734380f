"""Triton kernels that fake-quantize an activation, observe its range and mask its gradient.

Tensors are read in the order of memory. A program works on blocks of 4096 values, 32 of which share a word of the
gradient's mask; at most 1024 programs leave a partial result each, which a second launch of one program sums up.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightning_compress.quantization.fake_quantize.gpu.arithmetic import EXACT, clamp, round_even, take_in

BLOCK = 4096
PROGRAMS = 1024


@triton.jit
def _quantize(
    x_ptr, y_ptr, words_ptr, parts_ptr, scale_ptr, zero_ptr, range_ptr, n, qmin, qmax, clip_low, clip_high,
    CLIP: tl.constexpr, MASK: tl.constexpr, OBSERVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    scale, zero, first = tl.load(scale_ptr), tl.load(zero_ptr), tl.load(range_ptr)
    unknown = first != first  # No range yet: values pass.
    rows: tl.constexpr = BLOCK // 32
    bit = tl.arange(0, 32)[None, :]
    lowest, highest, nans = float("inf"), float("-inf"), 0
    for block in range(tl.program_id(0).to(tl.int64), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        at = block * BLOCK + tl.arange(0, rows)[:, None] * 32 + bit
        there = at < n
        raw = tl.load(x_ptr + at, mask=there, other=0).to(tl.float32)
        v = raw
        if CLIP:
            v = clamp(raw, clip_low, clip_high)
        q = tl.where(unknown, zero, round_even(tl.div_rn(v, scale)) + zero)
        kept = clamp(q, qmin, qmax)
        y = tl.where(unknown, v, (kept - zero) * scale)
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=there)
        if MASK:
            inside = kept == q
            if CLIP:
                inside = inside & (raw > clip_low) & (raw < clip_high)
            word = tl.sum(tl.where(inside & there, 1 << bit, 0), 1)
            at_word = block * rows + tl.arange(0, rows)
            tl.store(words_ptr + at_word, word, mask=at_word < tl.cdiv(n, 32))
        if OBSERVE:
            lowest = tl.minimum(lowest, tl.min(tl.min(tl.where(there, v, float("inf")), 1), 0))
            highest = tl.maximum(highest, tl.max(tl.max(tl.where(there, v, float("-inf")), 1), 0))
            nans += tl.sum(tl.sum(tl.where(there & (v != v), 1, 0), 1), 0)
    if OBSERVE:
        nan = float("nan")
        tl.store(parts_ptr + 2 * tl.program_id(0), tl.where(nans > 0, nan, lowest))
        tl.store(parts_ptr + 2 * tl.program_id(0) + 1, tl.where(nans > 0, nan, highest))


@triton.jit
def _ends(x_ptr, parts_ptr, n, clip_low, clip_high, CLIP: tl.constexpr, BLOCK: tl.constexpr):
    lowest, highest, nans = float("inf"), float("-inf"), 0
    for block in range(tl.program_id(0).to(tl.int64), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        at = block * BLOCK + tl.arange(0, BLOCK)
        there = at < n
        v = tl.load(x_ptr + at, mask=there, other=0).to(tl.float32)
        if CLIP:
            v = clamp(v, clip_low, clip_high)
        lowest = tl.minimum(lowest, tl.min(tl.where(there, v, float("inf")), 0))
        highest = tl.maximum(highest, tl.max(tl.where(there, v, float("-inf")), 0))
        nans += tl.sum(tl.where(there & (v != v), 1, 0), 0)
    nan = float("nan")
    tl.store(parts_ptr + 2 * tl.program_id(0), tl.where(nans > 0, nan, lowest))
    tl.store(parts_ptr + 2 * tl.program_id(0) + 1, tl.where(nans > 0, nan, highest))


@triton.jit
def _joined(parts_ptr, count, PROGRAMS: tl.constexpr):
    at = tl.arange(0, PROGRAMS)
    there = at < count
    low = tl.load(parts_ptr + 2 * at, mask=there, other=float("inf"))
    high = tl.load(parts_ptr + 2 * at + 1, mask=there, other=float("-inf"))
    nans = tl.sum(tl.where(low != low, 1, 0), 0)
    nan = float("nan")
    lowest = tl.where(nans > 0, nan, tl.min(tl.where(low != low, 0.0, low), 0))
    highest = tl.where(nans > 0, nan, tl.max(tl.where(high != high, 0.0, high), 0))
    return lowest, highest


@triton.jit
def _update(
    parts_ptr, count, range_ptr, scale_ptr, zero_ptr, nonfinite_ptr, momentum, levels,
    SYMMETRIC: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    low, high = _joined(parts_ptr, count, PROGRAMS)
    take_in(low, high, range_ptr, scale_ptr, zero_ptr, nonfinite_ptr, momentum, levels, SYMMETRIC)


@triton.jit
def _write_ends(parts_ptr, count, out_ptr, PROGRAMS: tl.constexpr):
    low, high = _joined(parts_ptr, count, PROGRAMS)
    tl.store(out_ptr, low)
    tl.store(out_ptr + 1, high)


@triton.jit
def _pass_inside(grad_ptr, words_ptr, out_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < n
    word = tl.load(words_ptr + at // 32, mask=there, other=0)
    grad = tl.load(grad_ptr + at, mask=there, other=0)
    inside = ((word >> (at % 32).to(tl.int32)) & 1) != 0
    tl.store(out_ptr + at, tl.where(inside, grad, 0.0).to(out_ptr.dtype.element_ty), mask=there)


def programs(n: int) -> int:
    """How many programs share ``n`` values."""
    return min(PROGRAMS, triton.cdiv(n, BLOCK))


def quantize(
    x: torch.Tensor,
    y: torch.Tensor,
    range_: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    nonfinite: torch.Tensor,
    qmin: int,
    qmax: int,
    clip: tuple[float, float] | None,
    momentum: float | None,
    mask: bool,
) -> torch.Tensor:
    """Write ``x`` on its grid to ``y``, and update the range where ``momentum`` is given: one launch, or two.

    Returns:
        Where the gradient passes, 32 values a word: int32.
    """
    n, count = x.numel(), programs(x.numel())
    words = torch.empty(triton.cdiv(n, 32) if mask else 0, dtype=torch.int32, device=x.device)
    parts = torch.empty(2 * count if momentum is not None else 0, dtype=torch.float32, device=x.device)
    low, high = clip or (0.0, 0.0)
    _quantize[(count,)](
        x, y, words, parts, scale, zero, range_, n, float(qmin), float(qmax), low, high,
        CLIP=clip is not None, MASK=mask, OBSERVE=momentum is not None, BLOCK=BLOCK, **EXACT,
    )  # fmt: skip
    if momentum is not None:
        _take_in(parts, count, (range_, scale, zero, nonfinite), momentum, qmin, qmax)
    return words


def observe(
    x: torch.Tensor,
    range_: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    nonfinite: torch.Tensor,
    qmin: int,
    qmax: int,
    clip: tuple[float, float] | None,
    momentum: float,
) -> None:
    """Update the range by the smallest and largest value: two launches."""
    count = programs(x.numel())
    _take_in(_partial_ends(x, clip), count, (range_, scale, zero, nonfinite), momentum, qmin, qmax)


def ends(x: torch.Tensor, clip: tuple[float, float] | None) -> torch.Tensor:
    """The smallest and largest value, float32 ``[2]``: two launches."""
    out = torch.empty(2, dtype=torch.float32, device=x.device)
    _write_ends[(1,)](_partial_ends(x, clip), programs(x.numel()), out, PROGRAMS=PROGRAMS)
    return out


def pass_inside(grad: torch.Tensor, words: torch.Tensor, out: torch.Tensor) -> None:
    """Write the gradient where it passes, else 0, to ``out``: one launch."""
    _pass_inside[(triton.cdiv(grad.numel(), BLOCK),)](grad, words, out, grad.numel(), BLOCK=BLOCK)


def _partial_ends(x: torch.Tensor, clip: tuple[float, float] | None) -> torch.Tensor:
    count = programs(x.numel())
    parts = torch.empty(2 * count, dtype=torch.float32, device=x.device)
    low, high = clip or (0.0, 0.0)
    _ends[(count,)](x, parts, x.numel(), low, high, CLIP=clip is not None, BLOCK=BLOCK)
    return parts


def _take_in(
    parts: torch.Tensor, count: int, state: tuple[torch.Tensor, ...], momentum: float, qmin: int, qmax: int
) -> None:
    _update[(1,)](parts, count, *state, momentum, float(qmax), SYMMETRIC=qmin < 0, PROGRAMS=PROGRAMS, **EXACT)
