"""How much a weight matters. Higher scores are kept."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.settings import Criterion, name_of


def magnitude(weight: Tensor) -> Tensor:
    """Absolute value |w| (Han et al. 2015)."""
    return weight.abs()


def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """First-order estimate |w · ∂L/∂w| of what removing a weight does to the loss (Molchanov et al. 2017)."""
    return (weight * gradient).abs()


def movement_step(weight: Tensor, gradient: Tensor) -> Tensor:
    """One step's share -w · ∂L/∂w of the movement score (Sanh et al. 2020, eq. 6).

    Summed over training steps it is positive for weights that move away from zero.
    """
    return -(weight * gradient)


def random(weight: Tensor, name: str, seed: int, step: int) -> Tensor:
    """Uniform random numbers that depend on nothing but the arguments, so every rank draws the same."""
    return torch.rand(weight.shape, generator=generator(name, seed, step), dtype=torch.float32).to(weight.device)


def generator(name: str, seed: int, step: int) -> torch.Generator:
    """A generator of its own for each layer and update: nothing to save, nothing shared with training."""
    key = zlib.crc32(f"{seed}/{step}/{name}".encode())
    return torch.Generator().manual_seed(key)


def custom(criterion: Criterion, weight: Tensor, gradient: Tensor | None, name: str, field: str) -> Tensor:
    """Scores from a user's callable, checked.

    Raises:
        CompressionError: It returned something other than a floating point tensor of the weight's shape.
    """
    scores = criterion(weight, gradient)
    if not isinstance(scores, Tensor) or scores.shape != weight.shape or not scores.is_floating_point():
        got = f"{scores.dtype} {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise CompressionError(
            f"{field}.criterion: {name_of(criterion)} must return a floating point tensor of the weight's shape "
            f"{list(weight.shape)} for {name}, got {got}."
        )
    return scores.detach()
