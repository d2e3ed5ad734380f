"""Example inputs of a model's forward, and evaluation mode for as long as it runs on them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lightning_compress.foundation.nested import mapped, tensors


def call_arguments(
    example_inputs: Any, forward: Callable[..., Any] | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split example inputs into positional and keyword arguments.

    Args:
        example_inputs: A tensor, a tuple or list of arguments, or a mapping of keyword arguments, which may also stand
            at the end of a tuple. A named tuple or a dataclass is one argument.
        forward: What will be called: a mapping that does not name its parameters is an argument itself.

    Example:
        >>> call_arguments({"x": 1})
        ((), {'x': 1})
        >>> call_arguments({"x": 1}, lambda batch: batch["x"])
        (({'x': 1},), {})
    """
    if isinstance(example_inputs, tuple | list) and not hasattr(example_inputs, "_fields"):
        arguments = tuple(example_inputs)
    else:
        arguments = (example_inputs,)
    if arguments and isinstance(arguments[-1], Mapping) and _binds(forward, arguments[:-1], arguments[-1]):
        return arguments[:-1], dict(arguments[-1])
    return arguments, {}


def _binds(forward: Callable[..., Any] | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a mapping holds keyword arguments; it does where that cannot be told."""
    if forward is None:
        return True
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        try:
            signature.bind(*args, kwargs)
        except TypeError:
            return True
        return False
    return True


def batch_size(tree: Any) -> int | None:
    """Samples in the inputs of a call: the first size of their first tensor.

    Returns:
        ``None`` where samples cannot be told apart: there is no such tensor, or an integer tensor of another first
        size, which may point at the others' rows (the edges of a graph).

    Example:
        >>> batch_size((torch.zeros(8, 3), torch.zeros(8, 5))), batch_size((torch.zeros(8, 3), torch.ones(2, 9).long()))
        (8, None)
    """
    found = [tensor for _, tensor in tensors(tree) if tensor.ndim]
    if not found:
        return None
    size = found[0].shape[0]
    indices = [t for t in found if not t.is_floating_point() and t.dtype != torch.bool]
    return size if all(t.shape[0] in (1, size) for t in indices) else None


def first_samples(tree: Any, samples: int) -> Any:
    """The same inputs with the first samples of their batch, where ``batch_size`` can tell.

    Example:
        >>> [t.shape[0] for t in first_samples([torch.zeros(8, 3), torch.zeros(8), torch.zeros(5)], 2)]
        [2, 2, 5]
    """
    size = batch_size(tree)
    return mapped(tree, lambda t: t[:samples] if t.ndim and t.shape[0] == size else t)


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
    return mapped(tree, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)
