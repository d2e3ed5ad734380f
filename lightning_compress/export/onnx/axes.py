"""Names of the free dimensions in an exported ONNX graph."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.export.onnx.session import OnnxModel
from lightning_compress.export.signatures import input_names, spell_keywords
from lightning_compress.foundation.pytree import tree_leaves


def name_axes(
    graph: Any,
    call: tuple[Sequence[Any], Mapping[str, Any]],
    model: nn.Module,
    axes: Mapping[str, Mapping[int, str]],
) -> list[tuple[str, int]]:
    """Give free dimensions the names that were asked for, in place; the batch is ``batch``.

    Args:
        graph: An ``onnx_ir.Graph``, whose inputs come in the order of the call's tensors.
        call: Positional and keyword arguments of the example.
        model: Whose forward names them.
        axes: Argument's name → dimension → name.

    Returns:
        Arguments and dimensions that torch.export took for constants. What it wrote may run with other sizes still, as
        an LSTM does; ``refuse_fixed`` says.
    """
    import onnx_ir as ir

    # Of the first dimensions, only the batch is free.
    renamed = {str(v.shape[0].value): "batch" for v in graph.inputs if v.shape and not isinstance(v.shape[0], int)}
    doubtful: list[tuple[str, int]] = []
    for given, value in zip(input_names(model.forward, tuple(call[0]), call[1]), graph.inputs, strict=False):
        for axis, name in axes.get(given, {}).items():
            size = value.shape[axis]
            if isinstance(size, int) or str(size.value).isdigit():
                # The exporter names a dimension that was taken for a constant by its size.
                doubtful.append((given, axis))
            if isinstance(size, int):
                continue
            renamed[str(size.value)] = name
    values = [*graph.inputs, *(output for node in graph.all_nodes() for output in node.outputs)]
    for value in values:
        if value.shape is not None and any(str(getattr(size, "value", "")) in renamed for size in value.shape):
            sizes = [
                size if isinstance(size, int) else renamed.get(str(size.value), size.value) for size in value.shape
            ]
            value.shape = ir.Shape(sizes)
    return doubtful


def refuse_fixed(
    path: Path, call: tuple[Sequence[Any], Mapping[str, Any]], model: nn.Module, doubtful: Sequence[tuple[str, int]]
) -> None:
    """Run a file with other sizes than it was exported with, beside the model.

    Args:
        path: The file.
        call: Positional and keyword arguments of the example.
        model: The model.
        doubtful: What ``name_axes`` gave.

    Raises:
        CompressionError: The file, or the model itself, does not run with another size of such a dimension.
    """
    model = copy.deepcopy(model).cpu().eval()
    spell_keywords(model, call[1])
    for name, axis in doubtful:
        bound = inspect.signature(model.forward).bind(*call[0], **call[1])
        tensor = bound.arguments[name].detach().cpu()
        size = tensor.shape[axis]
        bound.arguments[name] = (
            torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis) if size < 2 else tensor.narrow(axis, 0, size - 1)
        )
        try:
            with torch.no_grad():
                expected = [t for t in tree_leaves(model(*bound.args, **bound.kwargs)) if isinstance(t, torch.Tensor)]
            found = OnnxModel(path, model.forward)(*bound.args, **bound.kwargs)
            same = all(a.shape == b.shape for a, b in zip(found, expected, strict=True))
        except (CompressionError, RuntimeError, ValueError, IndexError):
            same = False
        if not same:
            raise CompressionError(
                f"to_onnx.dynamic_axes: dimension {axis} of {name!r} is {size} in the exported graph: "
                f"{type(model).__name__} computes with its size as a number. Leave it out, or compute with x.shape."
            )
