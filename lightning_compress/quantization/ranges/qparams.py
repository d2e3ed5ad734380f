"""Scale and zero point from the ends of a range."""

from __future__ import annotations

import torch

# Scales are kept normal numbers, so that no division by them overflows to NaN.
_SMALLEST_SCALE = 2.0**-100


def affine_qparams(minimum: torch.Tensor, maximum: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of unsigned integers for a range, widened to hold 0.0, which is exact.

    Args:
        minimum: float32 tensor.
        maximum: float32 tensor of the same shape.
        bits: Bit width.

    Returns:
        Scale (positive, finite) and zero point (an integer from 0 to 2^bits - 1), both float32. A range that
        was never observed (NaN) gives 1 and 0.

    Example:
        >>> affine_qparams(torch.tensor(-1.0), torch.tensor(2.0), 2)
        (tensor(1.), tensor(1.))
    """
    levels = 2**bits - 1
    low = minimum.clamp(max=0)
    # Divided before subtracting: the width of a finite range can overflow.
    scale = usable(maximum.clamp(min=0) / levels - low / levels)
    zero_point = (-low / scale).round_().clamp_(0, levels)
    return scale, torch.nan_to_num(zero_point, nan=0.0)


def symmetric_qparams(minimum: torch.Tensor, maximum: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale of signed integers from -(2^(bits-1) - 1) to 2^(bits-1) - 1, and the zero point 0.

    Returns:
        Scale (positive, finite) and zero point, both float32.

    Example:
        >>> symmetric_qparams(torch.tensor(-1.0), torch.tensor(3.0), 3)
        (tensor(1.), tensor(0.))
    """
    scale = usable(torch.maximum(-minimum, maximum) / (2 ** (bits - 1) - 1))
    return scale, torch.zeros_like(scale)


def usable(scale: torch.Tensor) -> torch.Tensor:
    """Keep scales positive and finite: 0 and NaN become 1, and the rest stays normal numbers."""
    return torch.where(scale > 0, scale.clamp(_SMALLEST_SCALE, torch.finfo(torch.float32).max), 1.0)
