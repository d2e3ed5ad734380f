"""Example inputs of a model's forward, and evaluation mode for as long as it runs on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.foundation.pytree import tree_map_only


def call_arguments(example_inputs: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Split example inputs into positional and keyword arguments.

    Args:
        example_inputs: A tensor, a tuple or list of arguments, or a mapping of keyword arguments, which may also stand
            at the end of a tuple.

    Example:
        >>> call_arguments({"x": 1})
        ((), {'x': 1})
    """
    if isinstance(example_inputs, Mapping):
        return (), example_inputs
    if isinstance(example_inputs, tuple | list):
        if example_inputs and isinstance(example_inputs[-1], Mapping):
            return tuple(example_inputs[:-1]), example_inputs[-1]
        return tuple(example_inputs), {}
    return (example_inputs,), {}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each module has the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def in_other_precision(module: nn.Module) -> bool:
    """Whether a module is in half precision, or altogether in float64, which runtimes have no kernels for.

    Example:
        >>> in_other_precision(nn.Linear(2, 2)), in_other_precision(nn.Linear(2, 2).double())
        (False, True)
    """
    found = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    return found == {torch.float64} or not found.isdisjoint({torch.float16, torch.bfloat16})


def in_float32(tree: Any) -> Any:
    """The same inputs with floats in single precision.

    Example:
        >>> [t.dtype for t in in_float32([torch.zeros(1).double(), torch.zeros(1).long()])]
        [torch.float32, torch.int64]
    """
    return tree_map_only(Tensor, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor, tree)
