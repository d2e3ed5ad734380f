"""Removes pruned channels from the network: smaller weights, the same outputs."""

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
from lightning_compress.pruning.channels.dependency_graph import find_groups
from lightning_compress.pruning.channels.group import ChannelGroup
from lightning_compress.pruning.channels.remove import Forms, apply_forms, remove, tensors_of
from lightning_compress.pruning.channels.trial_forward import differ, outputs

TOLERANCE = 1e-5
"""Largest difference allowed between the outputs before and after, relative to the largest output."""


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
    smaller, index, forms = remove(model, example_inputs, groups)
    difference = _difference(model, smaller, example_inputs)
    if difference > TOLERANCE:
        raise CompressionError(
            f"shrink: the smaller {type(model).__name__} gives other outputs than the masked one (relative difference "
            f"{difference:.2g}, allowed {TOLERANCE}). Were the masks applied to the weights?"
        )
    return Shrunk(
        smaller,
        _shapes(model, smaller, forms),
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
        smaller, _, _ = remove(model, example_inputs, first)
        outputs(smaller, example_inputs)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        return f"the model does not run without one of its channels: {error}".splitlines()[0]
    return None


def apply_shapes(model: nn.Module, shapes: Mapping[str, Any]) -> nn.Module:
    """Give a freshly made module the sizes of a shrunk one, in place, so that its ``state_dict`` loads.

    Weights are left uninitialised.

    Args:
        model: A module made as the original was.
        shapes: :attr:`Shrunk.shapes`.

    Raises:
        CompressionError: The module has other tensors or modules than the shrunk one.
    """
    tensors = tensors_of(model)
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
            setattr(modules[name], attribute, tuple(value) if isinstance(value, list) else value)
    apply_forms(model, shapes["forms"])
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


def _shapes(model: nn.Module, smaller: nn.Module, forms: Forms) -> dict[str, Any]:
    """The shapes of all tensors, and every number or tuple of numbers that is another in a shrunk module."""
    modules = {}
    for (name, old), (_, new) in zip(model.named_modules(), smaller.named_modules(), strict=True):
        before = vars(old)
        changed = {key: value for key, value in vars(new).items() if _is_size(value) and before.get(key) != value}
        if changed:
            modules[name] = {key: list(v) if isinstance(v, tuple) else v for key, v in changed.items()}
    return {
        "tensors": {name: list(tensor.shape) for name, tensor in tensors_of(smaller).items()},
        "modules": modules,
        "forms": forms,
    }


def _is_size(value: object) -> bool:
    return type(value) is int or (type(value) is tuple and all(type(item) is int for item in value))


def _difference(model: nn.Module, smaller: nn.Module, example_inputs: Any) -> float:
    try:
        found = outputs(smaller, example_inputs)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise CompressionError(
            f"shrink: the smaller {type(model).__name__} does not run: {error}. Its forward has sizes written into it; "
            "compute them from the tensors, or leave the layers out with ignore."
        ) from error
    return differ(outputs(model, example_inputs), found)
