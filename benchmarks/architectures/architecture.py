"""What the zoo knows of one architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Architecture:
    """One public architecture.

    Attributes:
        name: Distribution and network, ``"timm: test_resnet"``.
        distribution: What has to be installed, as a package index spells it.
        build: Makes the network with random weights.
        inputs: Batch size → the call's arguments: a tuple of positional or a dict of keyword arguments.
        quick: Whether it is part of the subset that continuous integration runs.
    """

    name: str
    distribution: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    quick: bool = False


def images(size: int, channels: int = 3, depth: int | None = None) -> Callable[[int], tuple[torch.Tensor]]:
    """Random images ``[batch, channels, size, size]``, or volumes with a ``depth``."""
    shape = (size, size) if depth is None else (depth, size, size)
    return lambda batch: (torch.randn(batch, channels, *shape),)


def tokens(length: int = 12, vocabulary: int = 64, **more: Callable[[int], torch.Tensor]) -> Callable[[int], Any]:
    """``input_ids`` ``[batch, length]`` by keyword, with ``more`` arguments made from the batch size."""
    return lambda batch: {
        "input_ids": torch.randint(3, vocabulary, (batch, length)),
        **{name: make(batch) for name, make in more.items()},
    }
