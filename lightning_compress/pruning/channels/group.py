"""Channels that can only be pruned together, as slices of several weights.

A channel of a group is produced by rows of some weights and read by columns of others. With the columns zero nothing
after them depends on the channel, so it can be removed without changing the output, whatever biases, norms and
activations do to it in between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_compress.pruning.patterns import Channel, Pattern
from lightning_compress.pruning.ranking.smallest import prune_smallest


@dataclass(eq=False)
class Part:
    """The slices of one weight that belong to a group's channels.

    Attributes:
        name: The parameter's full name.
        parameter: The parameter.
        dim: Dimension along which the channels lie.
        index: Positions along it.
        channel: The group's channel at each position.
    """

    name: str
    parameter: nn.Parameter
    dim: int
    index: Tensor
    channel: Tensor

    def positions(self, channels: Tensor) -> Tensor:
        """Positions along ``dim`` of those channels for which a 1-D ``bool`` tensor is true."""
        return self.index[channels[self.channel]]


@dataclass(eq=False)
class ChannelGroup:
    """Channels that exist in several weights at once; the unit of structured pruning.

    Attributes:
        name: The module that the group is named after.
        mask: ``bool`` of one entry a channel, ``True`` = kept.
        produced: Rows of the weights that make the channels.
        read: Columns of the weights that take them in.
        initial: Share of pruned channels at the start of the schedule.
        final: Share at its end.
        floor: Share of the channels that is always kept; one is always.
        own: Whether it follows its own sparsity instead of a share in the common one.
        pattern: The pattern, for what it shares with single weights.
        roots: Layer → the group's channel of each of its output channels, for all layers to start a removal from.
        grouped: Grouped convolutions that the channels pass; a channel of the group is one of their groups then.
    """

    name: str
    mask: Tensor
    produced: list[Part]
    read: list[Part]
    initial: float = 0.0
    final: float = 0.0
    floor: float = 0.0
    own: bool = False
    pattern: Pattern = field(default_factory=lambda: Channel("channel"))
    roots: dict[str, Tensor] = field(default_factory=dict)
    grouped: tuple[str, ...] = ()

    @property
    def parts(self) -> list[Part]:
        """All slices."""
        return [*self.produced, *self.read]

    @property
    def units(self) -> int:
        """Number of channels."""
        return self.mask.numel()

    @property
    def cap(self) -> int:
        """The most channels that may be pruned."""
        return self.units - max(1, math.ceil(round(self.floor * self.units, 6)))

    def pruned(self) -> int:
        """Channels pruned now."""
        return self.units - int(self.mask.count_nonzero())

    @property
    def entries(self) -> int:
        """Entries of the mask."""
        return self.mask.numel()

    def scores(self, entries: Mapping[str, Tensor]) -> Tensor:
        """Mean score of the weights that make each channel, over the group's mean, 1-D.

        The division makes channels of wide and narrow layers comparable in a common ranking. Channels pruned
        already get -inf.

        Args:
            entries: Parameter name → scores of its entries.
        """
        total = torch.zeros(self.units, dtype=torch.float64)
        count = torch.zeros(self.units, dtype=torch.float64)
        for part in self.produced:
            scores = entries[part.name].double()
            rows = scores.movedim(part.dim, 0).flatten(1).mean(dim=1).cpu()
            total.index_add_(0, part.channel, rows[part.index])
            count.index_add_(0, part.channel, torch.ones(len(part.index), dtype=torch.float64))
        mean = total / count.clamp(min=1)
        scale = mean.abs().mean()
        return (mean / scale if scale > 0 else mean).masked_fill(~self.mask, -math.inf)

    def keep_multiple(self, multiple: int, scores: Tensor) -> None:
        """Round the number of channels that stay to the nearest multiple, upwards at a tie or below the floor.

        Args:
            multiple: What to round to.
            scores: Scores of the channels, -inf for those pruned before; none of them comes back.
        """
        kept = (int(self.mask.count_nonzero()) + multiple // 2) // multiple * multiple
        least = self.units - self.cap
        kept = max(kept, math.ceil(least / multiple) * multiple)
        kept = min(kept, int((scores != -math.inf).count_nonzero()))
        prune_smallest([scores], [self.mask], self.units - kept, names=[self.name])

    def write(self, masks: Mapping[str, Tensor]) -> None:
        """Clear the slices of pruned channels in the masks of the weights."""
        for part in self.parts:
            mask = masks[part.name]
            mask.index_fill_(part.dim, part.positions(~self.mask).to(mask.device), False)

    def infer(self, kept: Mapping[str, Tensor]) -> None:
        """Take those channels as pruned that are read by nothing but zeros."""
        alive = torch.zeros(self.units, dtype=torch.bool)
        for part in self.read:
            columns = kept[part.name].movedim(part.dim, 0).flatten(1).any(dim=1).cpu()
            alive[part.channel[columns[part.index]]] = True
        # A channel that nothing reads any more is as good as pruned, but one always stays.
        if not alive.any():
            alive[0] = True
        self.mask = alive
