"""How a weight is cut into rows whose values share a scale, and the tables that kernels read it from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from lightning_compress.foundation.device_operators import Table

ROWS = 32
"""Rows of a tile: what one program works on."""

PART = 8192
"""Rows of more values are cut into parts of this many."""

# Columns of the table of weights.
COLUMNS = ("address", "offset", "channels", "inner", "outer", "groups", "group", "first_row", "rows", "parts", "part",
           "first_part", "qmax")  # fmt: skip

_table = Table()


class Layout(NamedTuple):
    """How a weight is quantized, as it lies in memory.

    Attributes:
        shape: Its shape in the order of memory.
        axis: Dimension of the output channels; ``None`` with a single scale.
        group: Inputs that share a scale; ``None`` for all of a channel.
        qmax: Largest integer.
    """

    shape: tuple[int, ...]
    axis: int | None
    group: int | None
    qmax: int

    @classmethod
    def of(cls, weight: torch.Tensor, axis: int, group: int, qmax: int) -> Layout:
        """From an operator's arguments: axis -1 stands for a single scale, group 0 for no groups."""
        order = sorted(range(weight.ndim), key=lambda dim: (-weight.stride()[dim], dim))
        shape = tuple(weight.shape[dim] for dim in order)
        return cls(shape, None if axis < 0 else order.index(axis), group or None, qmax)

    @property
    def scales(self) -> tuple[int, ...]:
        """Shape of its scales."""
        if self.axis is None:
            return ()
        channels = self.shape[self.axis]
        if self.group is None:
            return (channels,)
        return channels, -(-math.prod(self.shape) // channels // self.group)

    @property
    def scale_count(self) -> int:
        """How many scales it has."""
        return math.prod(self.scales)

    @property
    def parts(self) -> int:
        """How many rows and parts of rows it has."""
        *_, rows, parts, _ = self.row(cut=True)
        return rows * parts

    def row(self, *, cut: bool) -> list[int]:
        """``channels`` to ``part`` of the table of weights, without ``first_row``."""
        size = math.prod(self.shape)
        channels = 1 if self.axis is None else self.shape[self.axis]
        outer = 1 if self.axis is None else math.prod(self.shape[: self.axis % len(self.shape)])
        rest = size // channels
        group = min(self.group or rest, rest)
        groups = -(-rest // group)
        part = min(group, PART) if cut else group
        return [channels, rest // outer, outer, groups, group, channels * groups, -(-group // part), part]


def offsets_in(layouts: Sequence[Layout]) -> tuple[list[int], int]:
    """Where each weight starts in the tensor of all, at a multiple of 64 values."""
    sizes = [-(-math.prod(one.shape) // 64) * 64 for one in layouts]
    ends = np.cumsum([0, *sizes])
    return [int(end) for end in ends[:-1]], int(ends[-1])


def listed(
    weights: Sequence[torch.Tensor], layouts: Sequence[Layout], *, cut: bool
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """The table of weights and that of their tiles, on the device, and whether rows are cut into parts."""
    addresses = [weight.data_ptr() for weight in weights]
    device, key = weights[0].device, (tuple(layouts), cut)
    rows = [layout.row(cut=cut) for layout in layouts]

    def table() -> list[list[int]]:
        offsets, _ = offsets_in(layouts)
        found, first_row, first_part = [], 0, 0
        for address, offset, layout, row in zip(addresses, offsets, layouts, rows, strict=True):
            *shape, count, parts, part = row
            found.append([address, offset, *shape, first_row, count, parts, part, first_part, layout.qmax])
            first_row, first_part = first_row + count, first_part + count * parts
        return found

    def tiles() -> np.ndarray:
        counts = [-(-count * parts // ROWS) for *_, count, parts, _ in rows]
        return np.concatenate([np.stack([np.full(n, i), ROWS * np.arange(n)], 1) for i, n in enumerate(counts)])

    sent = _table.on(device, ("weights", tuple(addresses), *key), table), _table.on(device, ("tiles", *key), tiles)
    return *sent, any(parts > 1 for *_, parts, _ in rows)
