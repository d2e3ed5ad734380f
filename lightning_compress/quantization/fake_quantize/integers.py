"""The integers that fake-quantized tensors stand for, as exports store them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.fake_quantize import reference as eager
from lightning_compress.quantization.fake_quantize.scale_shapes import check_scale, spread_scale


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight in integers, from which every file format is written: weight ≈ integers × scale.

    Attributes:
        integers: int8, the weight's shape.
        scale: ``[]``, ``[C]`` along ``axis``, or ``[C, groups]``.
        axis: Dimension along which scales differ; ``None`` with a single scale.
        group_size: Inputs that share a scale, or ``None``.
        bits: Bit width.
    """

    integers: torch.Tensor
    scale: torch.Tensor
    axis: int | None
    group_size: int | None
    bits: int


def quantize_integers(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    axis: int | None,
    qmin: int,
    qmax: int,
    *,
    group_size: int | None = None,
) -> torch.Tensor:
    """The integers behind a fake-quantized tensor: int8 where the range allows, else uint8.

    Args:
        x: Float tensor without NaN.
        scale: As in ``fake_quantize`` and ``fake_quantize_weight``.
        zero_point: float32, ``[]``, or ``None`` for zero.
        axis: Dimension of the channels; ``None`` with a single scale.
        qmin: Smallest integer.
        qmax: Largest integer.
        group_size: As in ``fake_quantize_weight``.

    Raises:
        CompressionError: The tensor holds NaN, or the scale does not fit it.

    Example:
        >>> quantize_integers(torch.tensor([-1.0, 0.26, 9.0]), torch.tensor(0.5), None, None, -3, 3)
        tensor([-2,  1,  3], dtype=torch.int8)
    """
    check_scale(scale, x.shape, axis, group_size)
    if x.isnan().any():
        raise CompressionError(f"A tensor of shape {tuple(x.shape)} holds NaN: no integer stands for it.")
    q = eager.integers(x.detach(), spread_scale(scale, x.shape, axis, group_size), zero_point, qmin, qmax)
    return q.to(torch.int8 if qmin >= -128 and qmax <= 127 else torch.uint8)


def quantize_weight_integers(
    w: torch.Tensor,
    scale: torch.Tensor,
    axis: int | None,
    qmin: int,
    qmax: int,
    *,
    group_size: int | None = None,
) -> torch.Tensor:
    """``quantize_integers`` with zero point 0: int8, the shape of ``w``."""
    return quantize_integers(w, scale, None, axis, qmin, qmax, group_size=group_size)
