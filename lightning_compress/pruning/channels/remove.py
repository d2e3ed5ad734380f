"""Cuts pruned channels and heads out of a copy of a model."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.foundation import pytree
from lightning_compress.pruning.channels.attention_heads import HeadGroup, calls_of
from lightning_compress.pruning.channels.dependency_graph import dependency_graph, pruning_group
from lightning_compress.pruning.channels.group import ChannelGroup, Part
from lightning_compress.pruning.channels.narrow_attention import Gathered, gather, keep_heads
from lightning_compress.pruning.channels.trial_forward import differ, outputs

_ALIKE = 1e-5

Forms = dict[str, dict[str, Any]]
"""``{"multihead": {layer: heads left}, "gathered": {layer: {"side", "positions"}}}``; primitives only."""


def remove(
    model: nn.Module, example_inputs: Any, groups: Sequence[ChannelGroup]
) -> tuple[nn.Module, dict[str, Tensor], Forms]:
    """Copy a model without the pruned channels of some groups.

    Returns:
        The copy, for each of its tensors the flat indices of its entries in the original, and the layers whose
        forward is another now.
    """
    heads = [group for group in groups if isinstance(group, HeadGroup) and group.pruned()]
    sizes = {group.name: None if group.multihead else head_sizes(model, example_inputs, group) for group in heads}
    smaller = copy.deepcopy(model)
    original = tensors_of(model)
    with dependency_graph(smaller, example_inputs) as graph:
        # While channels are removed the tensors hold the positions of their entries, so that afterwards it is
        # known, for weights and optimizer state alike, what came from where.
        for name, tensor in tensors_of(smaller).items():
            tensor.data = torch.arange(original[name].numel(), dtype=torch.float64).reshape(tensor.shape)
        for group in groups:
            if group.roots and group.pruned():
                _cut_channels(smaller, graph, group)
    for group in heads:
        cut_parts(smaller, group)
    index = {}
    for name, tensor in tensors_of(smaller).items():
        index[name] = tensor.detach().round().long()
        source = original[name].detach()
        tensor.data = source.flatten()[index[name].to(source.device)].to(source.dtype)
    for (_, parameter), (_, old) in zip(smaller.named_parameters(), model.named_parameters(), strict=True):
        parameter.requires_grad_(old.requires_grad)
    forms: Forms = {"multihead": {}, "gathered": {}}
    for group in heads:
        _settle(smaller, group, sizes[group.name], forms)
    apply_forms(smaller, forms)
    return smaller, index, forms


def apply_forms(model: nn.Module, forms: Forms) -> None:
    """Give layers with fewer heads the forward that computes with them."""
    for name, kept in forms["multihead"].items():
        keep_heads(model, name, kept)
    for name, form in forms["gathered"].items():
        gather(model.get_submodule(name), form["side"], form["positions"])


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, without the positions that :func:`apply_forms` adds."""
    added = {f"{name}.positions" for name, module in model.named_modules() if isinstance(module, Gathered)}
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor for name, tensor in named.items() if name not in added}


def _cut_channels(model: nn.Module, graph: Any, group: ChannelGroup) -> None:
    modules = dict(model.named_modules())
    convolutions = [modules[name] for name in group.grouped]
    for name, unit in group.roots.items():
        channels = (~group.mask[unit]).nonzero().squeeze(1).tolist()
        raw = pruning_group(graph, modules[name], channels)
        raw.items[:] = [item for item in raw.items if item.dep.target.module not in convolutions]
        raw.prune(record_history=False)
    cut_parts(model, dataclasses.replace(group, produced=[p for p in group.produced if _owner(p) in group.grouped]))
    for module in convolutions:
        share = group.mask.count_nonzero().item() / group.units
        for size in ("groups", "in_channels", "out_channels"):
            setattr(module, size, round(getattr(module, size) * share))


def cut_parts(model: nn.Module, group: ChannelGroup) -> None:
    """Cut the slices of pruned channels out of weights, and the biases of those that make them, in place.

    Columns are cut of attention heads only; ``torch-pruning`` cuts those of other channels.
    """
    read = group.read if isinstance(group, HeadGroup) else []
    for part in [*group.produced, *read]:
        layer, _, key = part.name.rpartition(".")
        module = model.get_submodule(layer)
        weight = module.get_parameter(key)
        kept = torch.ones(weight.shape[part.dim], dtype=torch.bool)
        kept[part.positions(~group.mask)] = False
        weight.data = weight.data[(slice(None),) * part.dim + (kept.nonzero().squeeze(1).to(weight.device),)]
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = weight.shape
        if part in group.produced:
            _cut_bias(module, key, kept, group.mask)


def _cut_bias(module: nn.Module, key: str, kept: Tensor, mask: Tensor) -> None:
    multihead = isinstance(module, nn.MultiheadAttention)
    bias: Tensor | None = getattr(module, "in_proj_bias" if multihead else "bias")
    if multihead:
        # Separate projections share one bias, so it is cut with the first of them.
        kept = {"in_proj_weight": kept, "q_proj_weight": kept.repeat(3)}.get(key, torch.ones(0, dtype=torch.bool))
    elif bias is not None and len(bias) != len(kept):
        # A transposed convolution's weight has its input channels in front.
        kept = mask.repeat_interleave(len(bias) // len(mask))
    if bias is not None and len(kept):
        bias.data = bias.data[kept.nonzero().squeeze(1).to(bias.device)]


def _settle(model: nn.Module, group: HeadGroup, sizes: list[tuple[str, str, int]] | None, forms: Forms) -> None:
    """Set what a forward reads of sizes, or record that it needs another form."""
    kept = group.mask.nonzero().squeeze(1).tolist()
    if group.multihead:
        forms["multihead"][group.owner] = kept
    elif sizes is not None:
        _set_sizes(model, sizes, len(kept))
    else:
        for part in group.produced:
            rows = torch.ones(int(part.index.max()) + 1, dtype=torch.bool)
            rows[part.positions(~group.mask)] = False
            places = (rows.cumsum(0) - 1).masked_fill(~rows, 0)
            forms["gathered"][_owner(part)] = {"side": "rows", "positions": places.tolist()}
        for part in group.read:
            columns = part.positions(group.mask).sort().values
            forms["gathered"][_owner(part)] = {"side": "columns", "positions": columns.tolist()}


def head_sizes(model: nn.Module, example_inputs: Any, group: HeadGroup) -> list[tuple[str, str, int]] | None:
    """Which numbers a module computes its heads from, by trial on a copy of it.

    Returns:
        Module, attribute, and what it is for each head; ``None`` if no choice gives the right output, since sizes
        are written into its forward.
    """
    owner = model.get_submodule(group.owner)
    with calls_of(owner) as calls:
        outputs(model, example_inputs)
    inside = dataclasses.replace(group, produced=_inside(group.produced, group), read=_inside(group.read, group))
    inside.mask = torch.arange(group.units) > 0
    masked = copy.deepcopy(owner)
    for part in inside.read:
        masked.get_parameter(part.name).data.index_fill_(
            part.dim, part.positions(~inside.mask).to(part.parameter.device), 0.0
        )
    expected = _run(masked, calls[0])
    for sizes in _candidates(owner, group):
        smaller = copy.deepcopy(owner)
        cut_parts(smaller, inside)
        _set_sizes(smaller, sizes, group.units - 1)
        try:
            if differ(expected, _run(smaller, calls[0])) < _ALIKE:
                prefix = f"{group.owner}." if group.owner else ""
                return [((prefix + name).rstrip("."), attribute, each) for name, attribute, each in sizes]
        except (RuntimeError, ValueError, IndexError, TypeError):
            continue
    return None


def _candidates(owner: nn.Module, group: HeadGroup) -> list[list[tuple[str, str, int]]]:
    """Numbers that may count heads, or their channels together."""
    widths = {len(part.index) for part in group.parts}
    heads, totals = [], []
    for name, module in owner.named_modules():
        for attribute, value in vars(module).items():
            if type(value) is not int or isinstance(module, nn.Linear) or value <= 0 or value % group.units:
                continue
            each = (name, attribute, value // group.units)
            if "head" in attribute.lower() and not any(word in attribute.lower() for word in ("dim", "size", "width")):
                heads.append(each)
            elif value in widths:
                totals.append(each)
    return [heads, heads + totals, totals, []]


def _set_sizes(model: nn.Module, sizes: Sequence[tuple[str, str, int]], heads: int) -> None:
    for name, attribute, each in sizes:
        setattr(model.get_submodule(name), attribute, each * heads)


@torch.no_grad()
def _run(module: nn.Module, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Tensor]:
    result = module.eval()(*arguments[0], **arguments[1])
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def _inside(parts: Sequence[Part], group: HeadGroup) -> list[Part]:
    """Parts with the names that they have inside the owner."""
    start = len(group.owner) + 1 if group.owner else 0
    return [dataclasses.replace(part, name=part.name[start:]) for part in parts]


def _owner(part: Part) -> str:
    return part.name.rpartition(".")[0]
