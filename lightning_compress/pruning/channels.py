"""Channels that have to go together: the network's dependency groups, found with ``torch-pruning``.

A channel of a group is produced by rows of some weights and read by columns of others. With the columns zero nothing
after them depends on the channel, so it can be removed without changing the output, whatever biases, norms and
activations do to it in between. A trial with random weights checks exactly that before a group is used: where
channels meet in another way, as in a layer norm or in attention scores, it fails and the group stays whole.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.patterns import Channel, Pattern

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


@dataclass
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


@dataclass
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

    def scores(self, score: Callable[[str], Tensor]) -> Tensor:
        """Mean score of the weights that make each channel, over the group's mean, 1-D.

        The division makes channels of wide and narrow layers comparable in a common ranking. Channels pruned
        already get -inf.

        Args:
            score: Parameter name → scores of its entries.
        """
        total = torch.zeros(self.units, dtype=torch.float64)
        count = torch.zeros(self.units, dtype=torch.float64)
        for part in self.produced:
            scores = score(part.name).double()
            rows = scores.movedim(part.dim, 0).flatten(1).mean(dim=1).cpu()
            total.index_add_(0, part.channel, rows[part.index])
            count.index_add_(0, part.channel, torch.ones(len(part.index), dtype=torch.float64))
        mean = total / count.clamp(min=1)
        scale = mean.abs().mean()
        return (mean / scale if scale > 0 else mean).masked_fill(~self.mask, -math.inf)

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


def find_groups(model: nn.Module, example_inputs: Any) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Find the groups of channels that can be removed without changing the output.

    Args:
        model: The model; it is the same afterwards.
        example_inputs: A tensor, or a tuple of positional or dict of keyword arguments of ``forward``.

    Returns:
        The groups, and the name of every group that cannot be pruned with the reason.

    Raises:
        CompressionError: ``torch-pruning`` is missing.
    """
    groups: list[ChannelGroup] = []
    skipped: dict[str, str] = {}
    with dependency_graph(model, example_inputs) as graph:
        for name, raw in _named_groups(model, graph):
            group, reason = _read_group(model, graph, name, raw)
            if group is None:
                skipped[name] = reason
            elif not group.read:
                skipped[name] = "its channels are the model's output or are read by no convolution or linear layer"
            elif not _independent(model, example_inputs, group):
                skipped[name] = (
                    "its channels meet in more than convolutions and linear layers (a layer or group norm, attention, "
                    "the output), so removing some changes the others"
                )
            else:
                groups.append(group)
    return groups, skipped


@contextlib.contextmanager
def dependency_graph(model: nn.Module, example_inputs: Any) -> Iterator[Any]:
    """The model's dependency graph, traced in evaluation mode; modes and ``requires_grad`` come back."""
    try:
        import torch_pruning
    except ImportError:
        raise CompressionError(
            "pattern='channel' needs the package torch-pruning. Install lightning-compress[channel]."
        ) from None
    modes = {module: module.training for module in model.modules()}
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            graph = torch_pruning.DependencyGraph().build_dependency(
                model,
                example_inputs=to_device(model, example_inputs),
                forward_fn=call,
                output_transform=lambda output: [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor)],
                verbose=False,
            )
        yield graph
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, training in modes.items():
            module.training = training


def call(model: nn.Module, example_inputs: Any) -> Any:
    """Call a model on example inputs."""
    if isinstance(example_inputs, Mapping):
        return model(**example_inputs)
    if isinstance(example_inputs, tuple | list):
        return model(*example_inputs)
    return model(example_inputs)


def to_device(model: nn.Module, example_inputs: Any) -> Any:
    """Move example inputs to the model's device."""
    device = next(model.parameters()).device
    return pytree.tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, example_inputs)


@torch.no_grad()
def outputs(model: nn.Module, example_inputs: Any) -> list[Tensor]:
    """All tensors of a model's output in evaluation mode; modes come back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        result = call(model, to_device(model, example_inputs))
    finally:
        for module, training in modes.items():
            module.training = training
    return [leaf.detach() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def differ(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Largest difference between two outputs, relative to the largest value of the first."""
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        if a.shape != b.shape:
            return math.inf
        if a.is_floating_point() and a.numel():
            scale = float(a.double().abs().max()) or 1.0
            worst = max(worst, float((a.double() - b.double()).abs().max()) / scale)
    return worst if not math.isnan(worst) else math.inf


def _named_groups(model: nn.Module, graph: Any) -> Iterator[tuple[str, Any]]:
    names = {module: name for name, module in model.named_modules()}
    for raw in graph.get_all_groups():
        yield names.get(raw[0].dep.target.module, str(raw[0].dep.target.name)), raw


def _read_group(model: nn.Module, graph: Any, name: str, raw: Any) -> tuple[ChannelGroup | None, str]:
    names = {module: name for name, module in model.named_modules()}
    produced: dict[tuple[str, int], Part] = {}
    read: dict[tuple[str, int], Part] = {}
    channels = len(raw[0].idxs)
    for item in raw.items:
        module = item.dep.target.module
        if not isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
            continue
        groups = getattr(module, "groups", 1)
        depthwise = groups > 1 and groups == module.in_channels == module.out_channels
        if groups > 1 and not depthwise:
            return None, f"{names[module]} is a grouped convolution with {groups} groups"
        makes = bool(graph.is_out_channel_pruning_fn(item.dep.handler)) or depthwise
        dim = 0 if depthwise or makes != isinstance(module, _TRANSPOSED) else 1
        part = Part(
            f"{names[module]}.weight",
            cast(nn.Parameter, module.weight),
            dim,
            torch.tensor(list(item.idxs), dtype=torch.long),
            torch.tensor(list(item.root_idxs), dtype=torch.long),
        )
        (produced if makes else read)[part.name, dim] = part
        if int(part.index.max()) >= module.weight.shape[dim] or int(part.channel.max()) >= channels:
            return None, f"its channels cannot be followed into {names[module]} (reshaped or split on the way)"
    mask = torch.ones(channels, dtype=torch.bool)
    return ChannelGroup(name, mask, list(produced.values()), list(read.values())), ""


@torch.no_grad()
def _independent(model: nn.Module, example_inputs: Any, group: ChannelGroup) -> bool:
    """Whether channels whose readers are zero have no influence on the output, by trial."""
    generator = torch.Generator().manual_seed(0)
    # Every other channel, so that the rest are there to be influenced.
    chosen = torch.arange(group.units) % 2 == 0
    touched = {part.parameter: part.parameter.detach().clone() for part in group.parts}
    try:
        for part in group.read:
            _slices(part, chosen, lambda slices: slices.zero_())
        before = outputs(model, example_inputs)
        for part in group.produced:
            _slices(
                part,
                chosen,
                lambda s: s.copy_(s + 0.1 * torch.randn(s.shape, generator=generator).to(s)),
            )
            # The readers' zeros again, where one weight both makes and reads channels of the group.
            for reader in group.read:
                _slices(reader, chosen, lambda slices: slices.zero_())
        after = outputs(model, example_inputs)
    finally:
        for parameter, value in touched.items():
            parameter.copy_(value)
    return bool(before) and differ(before, after) < 1e-6


def _slices(part: Part, chosen: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    index = part.positions(chosen).to(part.parameter.device)
    slices = part.parameter.detach().index_select(part.dim, index)
    part.parameter.detach().index_copy_(part.dim, index, change(slices))
