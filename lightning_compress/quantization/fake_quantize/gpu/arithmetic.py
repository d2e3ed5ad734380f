# mypy: disable-error-code="no-untyped-def"
"""What the Triton kernels compute with: the float32 operations of the eager reference, in the same order.

Every launch passes ``EXACT``, which keeps the compiler from fusing a multiplication and an addition.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

EXACT = {"enable_fp_fusion": False}

SMALLEST = tl.constexpr(2.0**-100)
LARGEST = tl.constexpr(3.4028234663852886e38)
SMALLEST_LEARNED = tl.constexpr(2.0**-40)


@triton.jit
def round_even(v):
    """Half to even, exact below 2^22; beyond, every integer range is saturated whatever the result."""
    return (v + 12582912.0) - 12582912.0


@triton.jit
def clamp(v, low, high):
    """As ``torch.clamp``: NaN passes."""
    v = tl.where(v < low, low, v)
    return tl.where(v > high, high, v)


def halves(number: float) -> tuple[float, float]:
    """A number as a sum of two float32 numbers, since kernels take no float64 arguments."""
    high = float(np.float32(number))
    return high, float(np.float32(number - high))


@triton.jit
def wide(high, low):
    """The float64 number that ``halves`` took apart."""
    return tl.cast(high, tl.float64) + tl.cast(low, tl.float64)


@triton.jit
def usable(scale):
    """``qparams._usable``: positive, finite and a normal number; 0 and NaN become 1."""
    return tl.where(scale > 0, clamp(scale, SMALLEST, LARGEST), 1.0)


@triton.jit
def grid_of(low, high, levels, SYMMETRIC: tl.constexpr):
    """Scale and zero point of a range: ``qparams.symmetric_qparams`` or ``affine_qparams``."""
    if SYMMETRIC:
        largest = tl.where((-low > high) | (low != low), -low, high)
        scale = usable(tl.div_rn(largest, levels))
        zero = scale * 0.0
    else:
        below = tl.where(low > 0, 0.0, low)
        above = tl.where(high < 0, 0.0, high)
        scale = usable(tl.div_rn(above, levels) - tl.div_rn(below, levels))
        zero = clamp(round_even(tl.div_rn(-below, scale)), 0.0, levels)
        zero = tl.where(zero == zero, zero, 0.0)
    return scale, zero


@triton.jit
def is_finite(v):
    """Neither infinite nor NaN."""
    return (v - v) == 0.0


@triton.jit
def take_in(low, high, range_ptr, scale_ptr, zero_ptr, nonfinite_ptr, momentum, levels, SYMMETRIC: tl.constexpr):
    """``observers.update_``: the moving average of a range, and the scale and zero point that follow."""
    before_low, before_high = tl.load(range_ptr), tl.load(range_ptr + 1)
    moved_low = tl.where(before_low != before_low, low, before_low + (low - before_low) * momentum)
    moved_high = tl.where(before_high != before_high, high, before_high + (high - before_high) * momentum)
    finite = is_finite(low) & is_finite(high)
    moved_low = tl.where(finite, moved_low, before_low)
    moved_high = tl.where(finite, moved_high, before_high)
    scale, zero = grid_of(moved_low, moved_high, levels, SYMMETRIC)
    tl.store(range_ptr, moved_low)
    tl.store(range_ptr + 1, moved_high)
    tl.store(scale_ptr, scale)
    tl.store(zero_ptr, zero)
    tl.store(nonfinite_ptr, tl.load(nonfinite_ptr) + tl.where(finite, 0, 1))
