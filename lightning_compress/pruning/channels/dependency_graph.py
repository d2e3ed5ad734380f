"""The network's dependency groups, found with ``torch-pruning`` and tried before they are used.

A trial with random weights checks that a group's channels can be removed without changing the output: where channels
meet in another way than through convolutions and linear layers, as in a layer norm or in attention scores, it fails
and the group stays whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.foundation import pytree
from lightning_compress.foundation.example_inputs import evaluating
from lightning_compress.pruning.channels.attention_heads import find_heads
from lightning_compress.pruning.channels.group import ChannelGroup, Part
from lightning_compress.pruning.channels.grouped_convolutions import Passage, Strand, bundle
from lightning_compress.pruning.channels.trial_forward import call, differ, outputs, to_device

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
# What torch-pruning's own arithmetic of channels raises where a network does more with them than it knows.
_LOST = (ArithmeticError, LookupError, TypeError, ValueError)


def find_groups(model: nn.Module, example_inputs: Any) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Find the groups of channels and of attention heads that can be removed without changing the output.

    Args:
        model: The model; it is the same afterwards.
        example_inputs: A tensor, or a tuple of positional or dict of keyword arguments of ``forward``.

    Returns:
        The groups, and the name of every group that cannot be pruned with the reason.

    Raises:
        CompressionError: ``torch-pruning`` is missing, or cannot follow the model.
    """
    with dependency_graph(model, example_inputs) as graph:
        found, skipped = bundle(_strands(model, graph))
        heads, unfollowed = find_heads(model, example_inputs)
        skipped |= unfollowed
        groups: list[ChannelGroup] = []
        taken: set[tuple[str, int]] = set()
        for group in [*found, *heads]:
            slices = {(part.name, part.dim) for part in group.parts}
            if not group.read:
                skipped[group.name] = "its channels are the output, or no convolution or linear layer reads them"
            elif not _independent(model, example_inputs, group):
                skipped[group.name] = (
                    "its channels meet in more than convolutions and linear layers (a layer or group norm, attention, "
                    "the output), so removing some changes the others"
                )
            elif group in heads and slices & taken:
                skipped[group.name] = "its channels are pruned one by one"
            else:
                groups.append(group)
                taken |= slices
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
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with evaluating(model):
            try:
                with torch.enable_grad():
                    graph = torch_pruning.DependencyGraph().build_dependency(
                        model,
                        example_inputs=to_device(model, example_inputs),
                        forward_fn=call,
                        output_transform=lambda out: [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)],
                        verbose=False,
                    )
            except _LOST as error:
                raise CompressionError(
                    f"pattern='channel': torch-pruning cannot follow the channels of {type(model).__name__} "
                    f"({type(error).__name__}: {error}). Prune it with another pattern."
                ) from error
            _Bounded.around(graph)
            yield graph
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


class _EndlessError(RuntimeError):
    """A group that does not end."""


class _Bounded(list[Any]):
    """A node's dependencies, which can be followed so many times.

    ``torch-pruning`` does not come to an end where slices are joined in another order, as rotary positions do
    (Torch-Pruning#456).
    """

    left: list[int]

    @classmethod
    def around(cls, graph: Any) -> None:
        """Bound the search for every group; :func:`pruning_group` starts over."""
        graph.budget = [0]
        for node in graph.module2node.values():
            node.dependencies = cls(node.dependencies)
            node.dependencies.left = graph.budget

    def __iter__(self) -> Iterator[Any]:
        self.left[0] -= 1
        if self.left[0] == 0:
            raise _EndlessError
        return super().__iter__()


def pruning_group(graph: Any, layer: nn.Module, channels: Sequence[int]) -> Any:
    """All that goes with some output channels of a layer, as ``torch-pruning`` has it.

    Raises:
        RuntimeError: The search does not come to an end.
    """
    graph.budget[0] = 4 * len(graph.module2node) + 100
    return graph.get_pruning_group(layer, graph.get_pruner_of_module(layer).prune_out_channels, list(channels))


def _strands(model: nn.Module, graph: Any) -> list[Strand]:
    names = {module: name for name, module in model.named_modules()}
    strands = []
    seen: set[nn.Module] = set()
    for layer in list(graph.module2node):
        if not isinstance(layer, (nn.Linear, *_CONVOLUTIONS)) or layer in seen:
            continue
        channels = graph.get_pruner_of_module(layer).get_out_channels(layer)
        try:
            raw = pruning_group(graph, layer, range(channels))
        except _EndlessError:
            strands.append(Strand(names[layer], channels, problem="its channels are sliced and joined in a circle"))
            continue
        except _LOST as error:
            problem = f"torch-pruning cannot follow its channels ({type(error).__name__}: {error})"
            strands.append(Strand(names[layer], channels, problem=problem))
            continue
        seen |= {item.dep.target.module for item in raw.items if graph.is_out_channel_pruning_fn(item.dep.handler)}
        strands.append(_strand(model, graph, raw))
    return strands


def _strand(model: nn.Module, graph: Any, raw: Any) -> Strand:
    names = {module: name for name, module in model.named_modules()}
    root = raw[0].dep.target
    strand = Strand(names.get(root.module, str(root.name)), len(raw[0].idxs))
    produced: dict[tuple[str, int], Part] = {}
    read: dict[tuple[str, int], Part] = {}
    for item in raw.items:
        module = item.dep.target.module
        if not isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
            continue
        if module._parameters.get("weight") is None:
            strand.problem = f"the weight of {names[module]} is computed, as by weight_norm"
            continue
        groups = getattr(module, "groups", 1)
        depthwise = groups > 1 and groups == module.in_channels == module.out_channels
        makes = bool(graph.is_out_channel_pruning_fn(item.dep.handler)) or depthwise
        index = torch.tensor(list(item.idxs), dtype=torch.long)
        channel = torch.tensor(list(item.root_idxs), dtype=torch.long)
        dim = 0 if depthwise or makes != isinstance(module, _TRANSPOSED) else 1
        size = int(module.weight.shape[dim])
        if groups > 1 and not depthwise:
            strand.passages.append(Passage(names[module], module, makes, index, channel))
            size = cast(int, module.out_channels if makes else module.in_channels)
        else:
            part = Part(f"{names[module]}.weight", cast(nn.Parameter, module.weight), dim, index, channel)
            (produced if makes else read)[part.name, dim] = part
        if int(index.max()) >= size or int(channel.max()) >= strand.channels:
            strand.problem = f"its channels cannot be followed into {names[module]} (reshaped or split on the way)"
    strand.produced, strand.read = list(produced.values()), list(read.values())
    return strand


@torch.no_grad()
def _independent(model: nn.Module, example_inputs: Any, group: ChannelGroup) -> bool:
    """Whether channels whose readers are zero have no influence on the output, by trial."""
    units = torch.arange(group.units)
    # The rest are there to be influenced: by a neighbour, or by what is a half behind, as in a gate made by chunk(2).
    return all(
        _without_influence(model, example_inputs, group, chosen) for chosen in (units % 2 == 0, 2 * units < len(units))
    )


def _without_influence(model: nn.Module, example_inputs: Any, group: ChannelGroup, chosen: Tensor) -> bool:
    generator = torch.Generator().manual_seed(0)
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
