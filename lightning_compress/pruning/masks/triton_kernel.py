"""The Triton kernel that clears pruned entries of many tensors."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lightning_compress.pruning.masks.device import TILE


@triton.jit
def _clear(table, tiles, NARROW: tl.constexpr, TILE: tl.constexpr):
    entry = table + tl.load(tiles + 2 * tl.program_id(0)) * 3
    at = tl.load(tiles + 2 * tl.program_id(0) + 1) + tl.arange(0, TILE)
    there = at < tl.load(entry + 2)
    kept = tl.load(tl.load(entry + 1).to(tl.pointer_type(tl.int8)) + at, mask=there, other=1)
    # Only what is pruned is written.
    if NARROW:
        tl.store(tl.load(entry).to(tl.pointer_type(tl.int16)) + at, kept.to(tl.int16), mask=there & (kept == 0))
    else:
        tl.store(tl.load(entry).to(tl.pointer_type(tl.int32)) + at, kept.to(tl.int32), mask=there & (kept == 0))


def apply(table: torch.Tensor, tiles: torch.Tensor, width: int) -> None:
    """Write +0.0 where masks are false: one launch.

    Args:
        table: Address of each tensor and of its mask, and how many values it has: int64, ``[n, 3]``.
        tiles: From ``tiles_of``: int64, ``[programs, 2]``.
        width: Bytes of a value: 2 or 4.
    """
    _clear[(tiles.shape[0],)](table, tiles, NARROW=width == 2, TILE=TILE)
