"""The exported program of a deployable copy, from which every graph format is written."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules import transformer

from lightning_compress.errors import CompressionError, closest, first_line
from lightning_compress.export.deployable import deployable
from lightning_compress.export.signatures import spell_keywords
from lightning_compress.foundation import pytree
from lightning_compress.foundation.example_inputs import call_arguments


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    dynamic_batch: bool = True,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    field: str = "trace",
) -> torch.export.ExportedProgram:
    """Trace the deployable copy of a model, in which quantizers are the operators of ``export.ops``.

    Args:
        model: The model, quantized or float; it is not changed.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments.
        dynamic_batch: Leave the first dimension of every input free.
        dynamic_axes: Argument's name → other dimensions that stay free, with their names.
        field: Name of the caller, for messages.

    Raises:
        CompressionError: The model cannot be traced.
    """
    positional, keywords = call_arguments(example_inputs)
    args, kwargs = _cpu(tuple(positional)), _cpu(dict(keywords))
    if dynamic_batch:
        args, kwargs = _at_least_two(args), _at_least_two(kwargs)
    exported = deployable(model, (*args, kwargs))
    for parameter in exported.parameters():
        parameter.requires_grad_(False)
    spell_keywords(exported, kwargs)
    # A file's inputs come in the order of the forward, however the call was written.
    kwargs = {name: kwargs[name] for name in inspect.signature(exported.forward).parameters if name in kwargs}
    shapes = None
    if dynamic_batch:
        batch = torch.export.Dim("batch", min=1)
        free = tuple(_dynamic(arg, batch) for arg in args)
        shapes = _by_name(exported, free, {key: _dynamic(value, batch) for key, value in kwargs.items()})
    if dynamic_axes:
        shapes = _with_axes(exported, args, kwargs, shapes, dynamic_axes, field)
    try:
        # torch.onnx.export alone would fall back to modes that freeze data-dependent values without a word.
        with quiet(), _masks_unread():
            return torch.export.export(exported, args, kwargs, dynamic_shapes=shapes, strict=False)
    except (RuntimeError, ValueError, TypeError, torch._dynamo.exc.TorchDynamoException) as error:
        raise CompressionError(
            f"{field}: torch.export cannot trace {type(model).__name__}: {first_line(error)}. Values that depend on "
            f"data cannot steer Python code in an exported model; if only the batch size does, try dynamic_batch=False."
        ) from error


def _by_name(model: nn.Module, positional: tuple[Any, ...], keywords: dict[str, Any]) -> dict[str, Any]:
    """torch.export wants the dynamic shapes under the forward's own argument names."""
    bound = inspect.signature(model.forward).bind(*positional, **keywords)
    return dict(bound.arguments)


def _with_axes(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    shapes: dict[str, Any] | None,
    axes: Mapping[str, Mapping[int, str]],
    field: str,
) -> dict[str, Any]:
    """Add dimensions whose bounds torch.export finds by itself."""
    bound = _by_name(model, args, kwargs)
    found = dict(shapes) if shapes is not None else dict.fromkeys(bound)
    for name, free in axes.items():
        argument = bound.get(name)
        if not isinstance(argument, torch.Tensor):
            raise CompressionError.field(
                f"{field}.dynamic_axes", expected="names of tensors in the call", got=name, fix=closest(name, bound)
            )
        if any(not isinstance(axis, int) or not 0 <= axis < argument.ndim for axis in free):
            raise CompressionError.field(
                f"{field}.dynamic_axes.{name}", expected=f"dimensions from 0 to {argument.ndim - 1}", got=list(free)
            )
        found[name] = {**(found[name] or {}), **dict.fromkeys(free, torch.export.Dim.AUTO)}
    return found


def _dynamic(argument: Any, batch: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return {0: batch} if argument.ndim else None
    if isinstance(argument, tuple | list):
        return type(argument)(_dynamic(item, batch) for item in argument)
    if isinstance(argument, dict):
        return {key: _dynamic(item, batch) for key, item in argument.items()}
    return None


def _cpu(tree: Any) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda t: t.detach().cpu(), tree)


def _at_least_two(tree: Any) -> Any:
    # torch.export takes a dimension of size 1 for a constant.
    def repeat(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor]) if tensor.ndim and tensor.shape[0] == 1 else tensor

    return pytree.tree_map_only(torch.Tensor, repeat, tree)


@contextmanager
def _masks_unread() -> Iterator[None]:
    """A transformer reads its mask to find out whether it is causal, which no trace can; it applies it either way."""
    detect = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter warns about its own internals; nothing of that is the user's."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
