"""What is done with masks: applied to weights, counted, packed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.masks import cpu as kernel
from lightning_compress.pruning.masks.device import mask_on_device


def new_mask(weight: Tensor) -> Tensor:
    """Make a mask that keeps everything, on the weight's device and in its memory layout."""
    return torch.ones_like(weight, dtype=torch.bool, requires_grad=False)


def count_kept(mask: Tensor) -> int | Tensor:
    """How many entries of a mask are kept; a tensor (int64, ``[]``) where looking at it would wait for a device."""
    # NumPy counts bytes several times as fast as PyTorch.
    if mask.device.type == "cpu" and mask.is_contiguous():
        return int(np.count_nonzero(mask.numpy()))
    return mask.count_nonzero()


def stacked(counts: Sequence[int | Tensor]) -> Tensor:
    """Counts as one tensor (int64, ``[n]``) on the device of the first that lies on one.

    Example:
        >>> stacked([1, torch.tensor(2)])
        tensor([1, 2])
    """
    device = next((count.device for count in counts if isinstance(count, Tensor)), None)
    return (
        torch.stack([torch.as_tensor(count, dtype=torch.int64).to(device) for count in counts])
        if counts
        else (torch.zeros(0, dtype=torch.int64))
    )


@torch.no_grad()
def apply_masks(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Set pruned entries to +0.0 in place, whatever was there, NaN and infinities included.

    Kept entries keep every bit. On the CPU a small compiled kernel reads the tensor and its mask and writes the
    tensor in one pass; on CUDA and ROCm one launch serves all tensors. Elsewhere, and without a compiler or Triton,
    plain PyTorch gives the same bits.

    Args:
        tensors: Floating point tensors.
        masks: ``bool`` tensors of the same shapes, ``True`` = kept.

    Example:
        >>> weight = torch.tensor([1.0, float("nan")])
        >>> apply_masks([weight], [torch.tensor([True, False])])
        >>> weight
        tensor([1., 0.])
    """
    rest = kernel.mask_in_one_pass(tensors, masks)
    if rest:
        left = mask_on_device([tensors[i] for i in rest], [masks[i] for i in rest])
        rest = [rest[i] for i in left]
    for index in rest:
        tensor, mask = tensors[index].detach(), masks[index]
        # Not a multiplication: NaN times zero is NaN, and -1 times zero is -0.
        torch.where(mask, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device), out=tensor)


def pack(mask: Tensor) -> Tensor:
    """Pack a mask to one bit an entry, row-major, first entry in the highest bit.

    Returns:
        A 1-D ``uint8`` tensor of ``ceil(numel / 8)`` bytes on the CPU.
    """
    return torch.from_numpy(np.packbits(mask.cpu().contiguous().view(-1).numpy()))


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo :func:`pack`.

    Raises:
        CompressionError: The bits do not fit the shape.
    """
    numel = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.numel() != math.ceil(numel / 8):
        raise CompressionError(
            f"A packed mask of {bits.numel()} bytes does not fit a weight of shape {list(shape)}, which needs "
            f"{math.ceil(numel / 8)}."
        )
    flat = np.unpackbits(bits.cpu().numpy(), count=numel)
    return torch.from_numpy(flat).view(torch.bool).reshape(tuple(shape))
