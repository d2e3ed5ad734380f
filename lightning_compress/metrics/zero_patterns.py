"""The pattern of a weight's zeros (n:m, blocks, channels), found from the weight alone."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

_GROUPS = (2, 4, 8, 16)
_TILES = ((16, 16), (8, 8), (4, 4), (32, 1), (16, 1), (8, 1), (4, 1), (1, 32), (1, 16), (1, 8), (1, 4))
# Rounding to integers makes some more zeros inside of what was kept; scattered zeros meet neither bound.
_EXPLAINED, _FILLED = 0.8, 0.8
_FEW, _MANY = 8, 64


def pattern_of(weight: Tensor) -> str:
    """Name the pattern of a weight's zeros, in the grammar of pruning's ``pattern``.

    Args:
        weight: A weight ``[out, in, ...]`` of any type.

    Returns:
        ``"none"``, ``"channel"``, ``"n:m"``, ``"block:axb"`` or ``"unstructured"``. Chance makes a small weight look
        structured now and then, so that patterns are named only where enough groups or blocks have them.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[1.0, 0.0, 2.0, 0.0], [3.0, 4.0, 0.0, 0.0]]).repeat(8, 2)
        >>> pattern_of(weight)
        '2:4'
    """
    kept = weight != 0
    zeros = kept.numel() - int(kept.sum())
    if zeros == 0:
        return "none"
    if kept.ndim < 2:
        return "unstructured"
    if _is_channel(kept, zeros):
        return "channel"
    matrix = kept.reshape(kept.shape[0], -1)
    found = next(_n_of_m(kept), None) or next(
        (f"block:{a}x{b}" for a, b in _TILES if _tiles(matrix, a, b, zeros)), None
    )
    return found or "unstructured"


def empty_channels(weight: Tensor) -> int:
    """How many output channels (dimension 0) are zero altogether.

    Example:
        >>> import torch
        >>> empty_channels(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
        1
    """
    if weight.ndim < 2 or not weight.numel():
        return 0
    return int((weight.reshape(weight.shape[0], -1) == 0).all(1).sum())


def _is_channel(kept: Tensor, zeros: int) -> bool:
    """Whether whole output or input channels account for the zeros."""
    matrix = kept.reshape(kept.shape[0], kept.shape[1], -1).any(2)
    rows, columns = matrix.any(1), matrix.any(0)
    left = int(rows.sum()) * int(columns.sum()) * (kept.numel() // matrix.numel())
    return _accounts(kept.numel(), zeros, left)


def _n_of_m(kept: Tensor) -> Iterator[str]:
    """Patterns n:m along the input dimension that every group keeps to."""
    for m in _GROUPS:
        if kept.shape[1] % m:
            continue
        counts = kept.movedim(1, -1).reshape(-1, m).sum(1)
        n, groups = int(counts.max()), counts.numel()
        exact = groups >= _FEW and int(counts.min()) == n
        full = groups >= _MANY and float(counts.float().mean()) >= 0.75 * n
        if 0 < n <= m // 2 and (exact or full):
            yield f"{n}:{m}"


def _tiles(matrix: Tensor, height: int, width: int, zeros: int) -> bool:
    rows, columns = matrix.shape
    if rows % height or columns % width:
        return False
    tiles = matrix.reshape(rows // height, height, columns // width, width)
    some = tiles.any(3).any(1)
    return some.numel() >= _FEW and _accounts(matrix.numel(), zeros, int(some.sum()) * height * width)


def _accounts(numel: int, zeros: int, left: int) -> bool:
    """Whether what lies outside of the ``left`` entries is most of the zeros, and little else is zero."""
    return numel - left >= _EXPLAINED * zeros and numel - zeros >= _FILLED * left and left > 0
