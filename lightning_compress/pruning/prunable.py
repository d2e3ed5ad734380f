"""What is pruned as one: a weight with its mask, its pattern and its own settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_compress.foundation.shards import local
from lightning_compress.pruning.masks import count_kept, new_mask
from lightning_compress.pruning.patterns import Pattern


class Prunable(Protocol):
    """What :func:`.ranking.together.prune_together` needs to know of what it prunes; see :class:`Site`."""

    name: str
    mask: Tensor
    pattern: Pattern
    initial: float
    final: float
    floor: float
    own: bool

    @property
    def units(self) -> int:
        """Units that are kept or pruned as one."""

    @property
    def cap(self) -> int:
        """The most units that may be pruned."""

    @property
    def entries(self) -> int:
        """Entries of the mask, over all processes."""

    def pruned(self) -> int | Tensor:
        """Entries of the mask pruned now, in this process; a tensor (int64, ``[]``) on accelerators."""


@dataclass
class Site:
    """A weight to prune.

    Attributes:
        name: The parameter's full name.
        parameter: The parameter itself.
        mask: ``bool``, of the parameter's shape, ``True`` = kept; under FSDP2 of the rows that this process holds.
        pattern: What is pruned as one unit.
        initial: Sparsity at the start of the schedule.
        final: Sparsity at its end.
        floor: Share of the units that is always kept.
        own: Whether it follows its own sparsity instead of a share in the common one.
    """

    name: str
    parameter: nn.Parameter
    mask: Tensor
    pattern: Pattern
    initial: float
    final: float
    floor: float
    own: bool

    @classmethod
    def of(
        cls,
        name: str,
        parameter: nn.Parameter,
        pattern: Pattern,
        *,
        initial: float,
        final: float,
        floor: float,
        own: bool,
    ) -> Site:
        """Make a site whose mask keeps everything."""
        return cls(name, parameter, new_mask(local(parameter.detach())), pattern, initial, final, floor, own)

    @property
    def weight(self) -> Tensor:
        """The values that this process holds, sharing memory with the parameter."""
        return local(self.parameter.detach())

    @property
    def single(self) -> bool:
        """Whether each entry is a unit of its own."""
        return type(self.pattern) is Pattern

    @property
    def entries(self) -> int:
        """Entries of the whole weight."""
        return self.parameter.numel()

    @property
    def units(self) -> int:
        """Units that are kept or pruned as one."""
        return self.pattern.units(self.parameter.shape)

    @property
    def cap(self) -> int:
        """The most units that may be pruned."""
        return self.units - math.ceil(round(self.floor * self.units, 6))

    def pruned(self) -> int | Tensor:
        """Entries pruned now, in this process; a tensor (int64, ``[]``) on accelerators."""
        return self.mask.numel() - count_kept(self.mask)

    def move(self) -> None:
        """Follow the parameter to its device."""
        device = local(self.parameter).device
        if self.mask.device != device:
            self.mask = self.mask.to(device)

    def infer_mask(self) -> None:
        """Take weights that are exactly zero as pruned already."""
        torch.ne(self.weight, 0, out=self.mask)
