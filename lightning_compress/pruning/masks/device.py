"""The operator that applies all masks of a model on an accelerator: one launch, two where weights differ in width."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lightning_compress.foundation.device_operators import Table, operator, served

TILE = 4096
_table = Table()


def mask_on_device(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> list[int]:
    """Clear pruned entries of those tensors that the operator serves.

    Returns:
        Indices of the tensors that were left alone.
    """
    devices: dict[torch.device, list[int]] = {}
    for i, (tensor, mask) in enumerate(zip(tensors, masks, strict=True)):
        if served(tensor) and tensor.device == mask.device and _alike(tensor, mask):
            devices.setdefault(tensor.device, []).append(i)
    for found in devices.values():
        _apply([tensors[i] for i in found], [masks[i] for i in found])
        torch.autograd.graph.increment_version([tensors[i] for i in found])
    done = {i for found in devices.values() for i in found}
    return [i for i in range(len(tensors)) if i not in done]


def _alike(tensor: Tensor, mask: Tensor) -> bool:
    """Whether both fill their memory in the same order."""
    if tensor.is_contiguous() and mask.is_contiguous():
        return True
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.ndim)
    return layout is not None and all(t.is_contiguous(memory_format=layout) for t in (tensor, mask))


def _launch(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    from lightning_compress.pruning.masks import triton_kernel

    for width in sorted({tensor.element_size() for tensor in tensors}):
        own = [(t, m) for t, m in zip(tensors, masks, strict=True) if t.element_size() == width]
        addresses = tuple((t.data_ptr(), m.data_ptr(), t.numel()) for t, m in own)
        sizes, device = tuple(t.numel() for t, _ in own), tensors[0].device
        table = _table.on(device, ("masks", addresses), partial(tuple, addresses))
        tiles = _table.on(device, ("tiles", sizes), partial(tiles_of, sizes))
        triton_kernel.apply(table, tiles, width)


def tiles_of(sizes: Sequence[int]) -> np.ndarray:
    """Which tensor each program works on, and from which value on: ``[programs, 2]``."""
    counts = [-(-size // TILE) for size in sizes]
    return np.concatenate([np.stack([np.full(n, i), TILE * np.arange(n)], 1) for i, n in enumerate(counts)])


_apply = operator("apply_masks_(Tensor(a!)[] tensors, Tensor[] masks) -> ()", _launch, lambda tensors, masks: None)
