"""Shapes of scales: one for a tensor, for each channel, or for each group of a channel's values."""

from __future__ import annotations

import math

import torch

from lightning_compress.errors import CompressionError


def check_scale(scale: torch.Tensor, shape: torch.Size, axis: int | None, group_size: int | None) -> None:
    """Refuse scales that do not fit the tensor they are meant for.

    Raises:
        CompressionError: Their shape is not ``[]``, ``[C]`` or, with groups, ``[C, groups]``.
    """
    if scale.ndim == 0:
        return
    wanted: tuple[int, ...] = ()
    if axis is not None:
        wanted = (shape[axis],)
        if group_size is not None:
            wanted += (-(-math.prod(shape) // shape[axis] // group_size),)
    if tuple(scale.shape) != wanted:
        raise CompressionError(
            f"The scale of a tensor of shape {tuple(shape)} with axis={axis} and group_size={group_size}: expected "
            f"shape () or {wanted}, got {tuple(scale.shape)}."
        )


def spread_scale(
    scale: torch.Tensor, shape: torch.Size, axis: int | None, group_size: int | None = None
) -> torch.Tensor:
    """Reshape or repeat scales so that they broadcast with the tensor they belong to.

    Example:
        >>> spread_scale(torch.ones(8), torch.Size([8, 3, 3, 3]), 0).shape
        torch.Size([8, 1, 1, 1])
    """
    if scale.ndim == 0 or axis is None:
        return scale
    axis %= len(shape)
    if scale.ndim == 1:
        return scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    rest = [size for i, size in enumerate(shape) if i != axis]
    wide = scale.repeat_interleave(group_size or 1, 1)[:, : math.prod(rest)]
    return wide.reshape([shape[axis], *rest]).movedim(0, axis)
