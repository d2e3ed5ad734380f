"""Removes pruned channels for good: smaller weights, the same outputs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.channels import (
    ChannelGroup,
    dependency_graph,
    differ,
    find_groups,
    outputs,
)

TOLERANCE = 1e-5
"""Largest difference allowed between the outputs before and after, relative to the largest output."""

_SIZES = (
    "in_channels",
    "out_channels",
    "groups",
    "num_features",
    "in_features",
    "out_features",
    "num_channels",
    "num_parameters",
)


@dataclass(frozen=True)
class Shrunk:
    """A model without its pruned channels.

    Attributes:
        model: The smaller model, a copy; parameter names are those of the original.
        shapes: What :func:`apply_shapes` needs to give a fresh module the same sizes: primitives only.
        kept: Name of a parameter or buffer → flat indices of its entries in the original, in the new shape.
        removed: Group name → how many of its channels are gone.
        skipped: Group name → why its channels cannot be removed.
    """

    model: nn.Module
    shapes: dict[str, Any]
    kept: dict[str, Tensor]
    removed: dict[str, int]
    skipped: dict[str, str]


def shrink(model: nn.Module, example_inputs: Any, masks: Mapping[str, Tensor] | None = None) -> Shrunk:
    """Remove every channel that nothing reads: whose columns are zero in all layers that take it in.

    Args:
        model: A model pruned with ``pattern="channel"``; it is left as it is.
        example_inputs: A tensor, or a tuple of positional or dict of keyword arguments of ``forward``.
        masks: Parameter name → ``bool`` mask, ``True`` = kept. ``None``: what is zero is pruned.

    Raises:
        CompressionError: The smaller model does not run or its outputs differ by more than 1e-5, relative.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = net[2].weight.data[:, :6].zero_()
        >>> shrink(net, torch.randn(1, 4)).model[0]
        Linear(in_features=4, out_features=2, bias=True)
    """
    groups, skipped = find_groups(model, example_inputs)
    given = dict(masks or {})
    kept = {part.name: given.get(part.name, part.parameter.detach() != 0) for group in groups for part in group.parts}
    for group in groups:
        group.infer(kept)
    smaller, index = remove(model, example_inputs, groups)
    difference = _difference(model, smaller, example_inputs)
    if difference > TOLERANCE:
        raise CompressionError(
            f"shrink: the smaller {type(model).__name__} gives other outputs than the masked one (relative difference "
            f"{difference:.2g}, allowed {TOLERANCE}). Were the masks applied to the weights?"
        )
    return Shrunk(
        smaller,
        _shapes(smaller),
        index,
        {group.name: group.pruned() for group in groups if group.pruned()},
        skipped,
    )


def removable_groups(model: nn.Module, example_inputs: Any) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Find the groups whose channels can really be removed, by removing one of each from a copy.

    Returns:
        The groups, and the name of every other group with the reason.
    """
    groups, skipped = find_groups(model, example_inputs)
    if _trial(model, example_inputs, groups) is None:
        return groups, skipped
    fit = []
    for group in groups:
        reason = _trial(model, example_inputs, [group])
        if reason is None:
            fit.append(group)
        else:
            skipped[group.name] = reason
    return fit, skipped


def _trial(model: nn.Module, example_inputs: Any, groups: list[ChannelGroup]) -> str | None:
    first = [dataclasses.replace(group, mask=torch.arange(group.units) > 0) for group in groups if group.units > 1]
    try:
        smaller, _ = remove(model, example_inputs, first)
        outputs(smaller, example_inputs)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        return f"the model does not run without one of its channels: {error}".splitlines()[0]
    return None


def remove(model: nn.Module, example_inputs: Any, groups: list[ChannelGroup]) -> tuple[nn.Module, dict[str, Tensor]]:
    """Copy a model without the pruned channels of some groups.

    Returns:
        The copy, and for each of its tensors the flat indices of its entries in the original.
    """
    smaller = copy.deepcopy(model)
    original = _tensors(model)
    with dependency_graph(smaller, example_inputs) as graph:
        # While channels are removed the tensors hold the positions of their entries, so that afterwards it is
        # known, for weights and optimizer state alike, what came from where.
        for name, tensor in _tensors(smaller).items():
            tensor.data = torch.arange(original[name].numel(), dtype=torch.float64).reshape(tensor.shape)
        modules = dict(smaller.named_modules())
        for group in groups:
            channels = (~group.mask).nonzero().squeeze(1).tolist()
            if channels:
                root = modules[group.name]
                removal = graph.get_pruner_of_module(root).prune_out_channels
                graph.get_pruning_group(root, removal, channels).prune()
    index = {}
    for name, tensor in _tensors(smaller).items():
        index[name] = tensor.detach().round().long()
        source = original[name].detach()
        tensor.data = source.flatten()[index[name].to(source.device)].to(source.dtype)
    for (_, parameter), (_, old) in zip(smaller.named_parameters(), model.named_parameters(), strict=True):
        parameter.requires_grad_(old.requires_grad)
    return smaller, index


def apply_shapes(model: nn.Module, shapes: Mapping[str, Any]) -> nn.Module:
    """Give a freshly made module the sizes of a shrunk one, in place, so that its ``state_dict`` loads.

    Weights are left uninitialised.

    Args:
        model: A module made as the original was.
        shapes: :attr:`Shrunk.shapes`.

    Raises:
        CompressionError: The module has other tensors or modules than the shrunk one.
    """
    tensors = _tensors(model)
    if tensors.keys() != shapes["tensors"].keys():
        raise CompressionError(
            f"apply_shapes: {type(model).__name__} and the recorded shapes have different tensors: "
            f"{sorted(tensors.keys() ^ shapes['tensors'].keys())}."
        )
    for name, shape in shapes["tensors"].items():
        if list(tensors[name].shape) != shape:
            tensors[name].data = torch.empty(shape, dtype=tensors[name].dtype, device=tensors[name].device)
    modules = dict(model.named_modules())
    for name, sizes in shapes["modules"].items():
        for attribute, value in sizes.items():
            setattr(modules[name], attribute, value)
    return model


def carry_state(optimizer: Optimizer, model: nn.Module, shrunk: Shrunk) -> dict[str, Any]:
    """Cut an optimizer's state to the shrunk model's sizes.

    Args:
        optimizer: The optimizer of the original model.
        model: The original model.
        shrunk: What :func:`shrink` made of it.

    Returns:
        A ``state_dict`` for an optimizer of the same kind, made over the shrunk model's parameters in the same
        order and groups.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = copy.deepcopy(optimizer.state_dict())
    for position, parameter in enumerate(order):
        index = shrunk.kept[names[parameter]]
        for key, value in state["state"].get(position, {}).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state["state"][position][key] = value.flatten()[index.to(value.device)]
    return state


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _shapes(model: nn.Module) -> dict[str, Any]:
    return {
        "tensors": {name: list(tensor.shape) for name, tensor in _tensors(model).items()},
        "modules": {
            name: {a: getattr(module, a) for a in _SIZES if isinstance(getattr(module, a, None), int)}
            for name, module in model.named_modules()
            if any(isinstance(getattr(module, a, None), int) for a in _SIZES)
        },
    }


def _difference(model: nn.Module, smaller: nn.Module, example_inputs: Any) -> float:
    try:
        found = outputs(smaller, example_inputs)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise CompressionError(
            f"shrink: the smaller {type(model).__name__} does not run: {error}. Its forward has sizes written into it; "
            "compute them from the tensors, or leave the layers out with ignore."
        ) from error
    return differ(outputs(model, example_inputs), found)
