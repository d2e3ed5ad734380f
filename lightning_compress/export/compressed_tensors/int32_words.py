"""Integers of few bits in int32 words, as the compressed-tensors project stores them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def pack(integers: Tensor, bits: int) -> Tensor:
    """Pack signed integers of 4 or 8 bits into int32, the first in the lowest bits, shifted to be positive.

    Args:
        integers: int8 [rows, columns].
        bits: 4 or 8.

    Returns:
        int32 [rows, ceil(columns * bits / 32)].

    Example:
        >>> pack(torch.tensor([[-8, -7]], dtype=torch.int8), 4)
        tensor([[16]], dtype=torch.int32)
    """
    in_word = 32 // bits
    # Padding is zero in the word, not in the integers.
    shifted = nn.functional.pad(integers.to(torch.int64) + 2 ** (bits - 1), (0, -integers.shape[1] % in_word))
    steps = torch.arange(in_word) * bits
    words = (shifted.reshape(integers.shape[0], -1, in_word) << steps).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack(words: Tensor, bits: int, columns: int) -> Tensor:
    """The integers, int8 [rows, columns], of what :func:`pack` packed.

    Example:
        >>> unpack(torch.tensor([[16]], dtype=torch.int32), 4, 2)
        tensor([[-8, -7]], dtype=torch.int8)
    """
    steps = torch.arange(32 // bits) * bits
    values = (words.to(torch.int64)[..., None] >> steps) & (2**bits - 1)
    return (values.flatten(1)[:, :columns] - 2 ** (bits - 1)).to(torch.int8)
