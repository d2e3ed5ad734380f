"""Triton kernels that find an activation's range by percentile or least squared error, and update it."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from lightning_compress.quantization.fake_quantize.gpu.arithmetic import EXACT, clamp, grid_of, round_even, take_in

_CHUNK = 2048
_BLOCK = 4096


@triton.jit
def _largest(v, count, out_ptr, SIZE: tl.constexpr):
    """Write the ``count`` largest values in falling order; each counts as often as it occurs."""
    at = tl.arange(0, SIZE)
    for i in range(count):
        best = tl.max(v, 0)
        tl.store(out_ptr + i, best)
        first = tl.min(tl.where(v == best, at, SIZE), 0)
        v = tl.where(at == first, float("-inf"), v)


@triton.jit
def _tails(
    x_ptr, high_ptr, low_ptr, odd_ptr, n, stride, count, clip_low, clip_high, CLIP: tl.constexpr, CHUNK: tl.constexpr
):
    at = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    there = at < n
    v = tl.load(x_ptr + at.to(tl.int64) * stride, mask=there, other=0).to(tl.float32)
    if CLIP:
        v = clamp(v, clip_low, clip_high)
    # What a sum over all values would be NaN for: a NaN, or infinities of both signs.
    nans = tl.sum(tl.where(there & (v != v), 1, 0), 0)
    ups = tl.sum(tl.where(there & (v == float("inf")), 1, 0), 0)
    downs = tl.sum(tl.where(there & (v == float("-inf")), 1, 0), 0)
    tl.store(odd_ptr + 3 * tl.program_id(0), nans)
    tl.store(odd_ptr + 3 * tl.program_id(0) + 1, ups)
    tl.store(odd_ptr + 3 * tl.program_id(0) + 2, downs)
    usable = there & (v == v)
    _largest(tl.where(usable, v, float("-inf")), count, high_ptr + tl.program_id(0) * count, CHUNK)
    _largest(tl.where(usable, -v, float("-inf")), count, low_ptr + tl.program_id(0) * count, CHUNK)


@triton.jit
def _tail_end(v, count, SIZE: tl.constexpr):
    """The ``count``-th largest value, and the one above it."""
    at = tl.arange(0, SIZE)
    outer = tl.max(v, 0)
    inner = outer
    for i in range(count):
        best = tl.max(v, 0)
        outer = tl.where(i == 0, best, inner)
        inner = best
        first = tl.min(tl.where(v == best, at, SIZE), 0)
        v = tl.where(at == first, float("-inf"), v)
    return inner, outer


@triton.jit
def _take_percentile(
    high_ptr, low_ptr, odd_ptr, chunks, count, fraction, range_ptr, scale_ptr, zero_ptr, nonfinite_ptr, momentum,
    levels, SYMMETRIC: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    at = tl.arange(0, SIZE)
    there = at < chunks * count
    inner, outer = _tail_end(tl.load(high_ptr + at, mask=there, other=float("-inf")), count, SIZE)
    high = inner + (outer - inner) * fraction
    inner, outer = _tail_end(tl.load(low_ptr + at, mask=there, other=float("-inf")), count, SIZE)
    low = -inner + (-outer + inner) * fraction
    listed = at < chunks
    nans = tl.sum(tl.load(odd_ptr + 3 * at, mask=listed, other=0), 0)
    ups = tl.sum(tl.load(odd_ptr + 3 * at + 1, mask=listed, other=0), 0)
    downs = tl.sum(tl.load(odd_ptr + 3 * at + 2, mask=listed, other=0), 0)
    odd = (nans > 0) | ((ups > 0) & (downs > 0))
    nan = float("nan")
    low, high = tl.where(odd, nan, low), tl.where(odd, nan, high)
    take_in(low, high, range_ptr, scale_ptr, zero_ptr, nonfinite_ptr, momentum, levels, SYMMETRIC)


@triton.jit
def _errors(
    x_ptr, full_ptr, fractions_ptr, errors_ptr, n, stride, qmin, qmax, clip_low, clip_high,
    SYMMETRIC: tl.constexpr, CLIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    fraction = tl.load(fractions_ptr + tl.program_id(0))
    scale, zero = grid_of(tl.load(full_ptr) * fraction, tl.load(full_ptr + 1) * fraction, qmax, SYMMETRIC)
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        there = at < n
        v = tl.load(x_ptr + at.to(tl.int64) * stride, mask=there, other=0).to(tl.float32)
        if CLIP:
            v = clamp(v, clip_low, clip_high)
        restored = (clamp(round_even(tl.div_rn(v, scale)) + zero, qmin, qmax) - zero) * scale
        error = restored - v
        total += tl.where(there, error * error, 0.0).to(tl.float64)
    tl.store(errors_ptr + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def best_of(errors, count, SIZE: tl.constexpr):
    """The first of the least errors; ``SIZE`` where there is none."""
    at = tl.arange(0, SIZE)
    errors = tl.where((at < count) & (errors == errors), errors, float("inf"))
    least = tl.min(errors, 0)
    return tl.min(tl.where((errors == least) & (errors < float("inf")), at, SIZE), 0)


@triton.jit
def _take_best(
    full_ptr, fractions_ptr, errors_ptr, count, range_ptr, scale_ptr, zero_ptr, nonfinite_ptr, momentum, levels,
    SYMMETRIC: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    at = tl.arange(0, SIZE)
    best = best_of(tl.load(errors_ptr + at, mask=at < count, other=float("inf")), count, SIZE)
    fraction = tl.load(fractions_ptr + best, mask=best < count, other=1.0)
    low, high = tl.load(full_ptr) * fraction, tl.load(full_ptr + 1) * fraction
    take_in(low, high, range_ptr, scale_ptr, zero_ptr, nonfinite_ptr, momentum, levels, SYMMETRIC)


def observe_percentile(
    x: torch.Tensor,
    state: tuple[torch.Tensor, ...],
    percentile: float,
    most: int,
    qmin: int,
    qmax: int,
    clip: tuple[float, float] | None,
    momentum: float,
) -> None:
    """``observers.percentile`` of a sample of at most ``most`` values, and the range's update: two launches."""
    stride = triton.cdiv(x.numel(), most)
    n = triton.cdiv(x.numel(), stride)
    position = (n - 1) * percentile / 100
    count, fraction = n - int(position), position - int(position)
    chunks = triton.cdiv(n, _CHUNK)
    high = torch.empty(chunks * count, dtype=torch.float32, device=x.device)
    low = torch.empty_like(high)
    odd = torch.empty(3 * chunks, dtype=torch.int32, device=x.device)
    ends = clip or (0.0, 0.0)
    _tails[(chunks,)](x, high, low, odd, n, stride, count, *ends, CLIP=clip is not None, CHUNK=_CHUNK)
    _take_percentile[(1,)](
        high, low, odd, chunks, count, fraction, *state, momentum, float(qmax),
        SYMMETRIC=qmin < 0, SIZE=triton.next_power_of_2(chunks * count), **EXACT,
    )  # fmt: skip


def observe_least_error(
    x: torch.Tensor,
    full: torch.Tensor,
    state: tuple[torch.Tensor, ...],
    fractions: tuple[float, ...],
    most: int,
    qmin: int,
    qmax: int,
    clip: tuple[float, float] | None,
    momentum: float,
) -> None:
    """``observers.mse`` of a sample of at most ``most`` values, and the range's update: two launches.

    Args:
        x: The activation.
        full: Its smallest and largest value.
        state: Range, scale, zero point and count of non-finite observations, updated in place.
        fractions: Parts of the full range that are tried.
        most: Size of the sample.
        qmin: Smallest integer.
        qmax: Largest integer.
        clip: Ends that values are clipped to first.
        momentum: Weight of the observation.
    """
    stride = triton.cdiv(x.numel(), most)
    table = fractions_on(x.device, fractions)
    errors = torch.empty(len(fractions), dtype=torch.float64, device=x.device)
    symmetric, ends = qmin < 0, clip or (0.0, 0.0)
    _errors[(len(fractions),)](
        x, full, table, errors, triton.cdiv(x.numel(), stride), stride, float(qmin), float(qmax), *ends,
        SYMMETRIC=symmetric, CLIP=clip is not None, BLOCK=_BLOCK, **EXACT,
    )  # fmt: skip
    _take_best[(1,)](
        full, table, errors, len(fractions), *state, momentum, float(qmax),
        SYMMETRIC=symmetric, SIZE=triton.next_power_of_2(len(fractions)), **EXACT,
    )  # fmt: skip


@functools.cache
def fractions_on(device: torch.device, fractions: tuple[float, ...]) -> torch.Tensor:
    """The parts of a range that a search tries, on a device: float32."""
    return torch.tensor(fractions, dtype=torch.float32, device=device)
