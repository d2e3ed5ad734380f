"""Random numbers that depend on nothing but a layer's name, the seed and the step."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor


def uniform(shape: Sequence[int], name: str, seed: int, step: int) -> Tensor:
    """Uniform numbers in [0, 1), float32 on the CPU: nothing to save, the same in every process.

    Example:
        >>> uniform((2,), "fc.weight", seed=0, step=1).equal(uniform((2,), "fc.weight", seed=0, step=1))
        True
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{step}/{name}".encode()))
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float32)
