"""Grouped convolutions: a whole group of the convolution is kept or pruned, from the layers before it to those after.

A grouped convolution splits its input and output channels into groups that do not see each other. The channels before
and behind it are two strands of ``torch-pruning``; here strands that meet in a grouped convolution become one bundle,
whose unit is one of its groups. Depthwise convolutions are the case of one channel a group, which ``torch-pruning``
follows by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_compress.pruning.channels.group import ChannelGroup, Part


@dataclass
class Passage:
    """Channels that go into or come out of a grouped convolution.

    Attributes:
        name: The convolution's full name.
        module: The convolution.
        out: Whether they come out.
        index: Their positions among its input or output channels.
        channel: The strand's channel at each position.
    """

    name: str
    module: Any
    out: bool
    index: Tensor
    channel: Tensor

    def groups_of(self) -> Tensor:
        """The convolution's group at each position."""
        channels = self.module.out_channels if self.out else self.module.in_channels
        return self.index // (channels // self.module.groups)


@dataclass
class Strand:
    """Channels that pass from layer to layer without a grouped convolution between.

    Attributes:
        name: The layer that they are named after.
        channels: How many there are.
        produced: Rows of the weights that make them.
        read: Columns of the weights that take them in.
        passages: Grouped convolutions at their ends.
        problem: Why they cannot be pruned, where that is known already.
    """

    name: str
    channels: int
    produced: list[Part] = field(default_factory=list)
    read: list[Part] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    problem: str = ""


def bundle(strands: Sequence[Strand]) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Make groups of strands, those that meet in a grouped convolution together.

    Returns:
        The groups, and the name of every strand that is left whole with the reason.
    """
    groups: list[ChannelGroup] = []
    skipped: dict[str, str] = {}
    for tied in _tied(strands):
        problem = next((strand.problem for strand in tied if strand.problem), "")
        if not problem and not tied[0].passages:
            groups.append(_group(tied, {tied[0].name: torch.arange(tied[0].channels)}, tied[0].channels))
            continue
        units = {} if problem else _units(tied)
        if isinstance(units, str) or problem:
            skipped |= {strand.name: problem or str(units) for strand in tied}
        else:
            groups.append(_group(tied, units, tied[0].passages[0].module.groups))
    return groups, skipped


def _tied(strands: Sequence[Strand]) -> list[list[Strand]]:
    """Strands that share grouped convolutions, directly or by way of others."""
    found: list[list[Strand]] = []
    for strand in strands:
        names = {passage.name for passage in strand.passages}
        near = [tied for tied in found if any(p.name in names for other in tied for p in other.passages)]
        found = [tied for tied in found if tied not in near]
        found.append([*(other for tied in near for other in tied), strand])
    return found


def _units(tied: Sequence[Strand]) -> dict[str, Tensor] | str:
    """For each strand the convolution group of each channel, or why there is none."""
    passages = [passage for strand in tied for passage in strand.passages]
    first = passages[0]
    for passage in passages:
        module = passage.module
        if module.groups != first.module.groups:
            return f"{first.name} and {passage.name} are grouped convolutions with different numbers of groups"
        if module.groups == module.out_channels != module.in_channels:
            return f"{passage.name} is a grouped convolution with one output channel a group"
        for out, channels in ((False, module.in_channels), (True, module.out_channels)):
            seen = {int(i) for p in passages if p.name == passage.name and p.out == out for i in p.index}
            if len(seen) != channels:
                side = "output" if out else "input"
                return f"{passage.name} is a grouped convolution whose {side} channels are not those of other layers"
    units = {}
    for strand in tied:
        unit = torch.full((strand.channels,), -1)
        for passage in strand.passages:
            groups = passage.groups_of()
            known = unit[passage.channel]
            if ((known != -1) & (known != groups)).any():
                return f"{passage.name} is a grouped convolution that groups its channels as no other layer does"
            unit[passage.channel] = groups
        if (unit == -1).any():
            return f"{strand.passages[0].name} is a grouped convolution that only some of the channels pass"
        units[strand.name] = unit
    return units


def _group(tied: Sequence[Strand], units: dict[str, Tensor], count: int) -> ChannelGroup:
    produced = [_in_units(part, units[strand.name]) for strand in tied for part in strand.produced]
    read = [_in_units(part, units[strand.name]) for strand in tied for part in strand.read]
    convolutions = {passage.name: passage.module for strand in tied for passage in strand.passages}
    for name, module in convolutions.items():
        # Dimension 0 runs over all output channels, or input channels where it is transposed; both in order of groups.
        rows = torch.arange(module.weight.shape[0])
        produced.append(Part(f"{name}.weight", module.weight, 0, rows, rows // (len(rows) // module.groups)))
    mask = torch.ones(count, dtype=torch.bool)
    return ChannelGroup(tied[0].name, mask, produced, read, roots=units, grouped=tuple(convolutions))


def _in_units(part: Part, unit: Tensor) -> Part:
    return Part(part.name, part.parameter, part.dim, part.index, unit[part.channel])
