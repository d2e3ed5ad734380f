"""Names of the free dimensions in an exported ONNX graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.export.onnx.session import OnnxModel
from lightning_compress.export.signatures import input_names, named_outputs
from lightning_compress.foundation.nested import mapped


def name_axes(graph: Any, inputs: Sequence[str], axes: Mapping[str, Mapping[int, str]]) -> list[tuple[str, int]]:
    """Give free dimensions the names that were asked for, in place; the batch is ``batch``.

    Args:
        graph: An ``onnx_ir.Graph``.
        inputs: Names that the forward gives to the graph's inputs, in their order.
        axes: Input's name → dimension → name.

    Returns:
        Inputs and dimensions that torch.export took for constants. What it wrote may run with other sizes still, as
        an LSTM does; ``refuse_fixed`` says.
    """
    import onnx_ir as ir

    # The batch, or the rows of each input where they are free of one another, as nodes and edges are.
    rows = {n: str(v.shape[0].value) for n, v in zip(inputs, graph.inputs, strict=True) if _is_free(v)}
    renamed = {size: "batch" if len(set(rows.values())) == 1 else f"{name}_rows" for name, size in rows.items()}
    doubtful: list[tuple[str, int]] = []
    for given, value in zip(inputs, graph.inputs, strict=True):
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


def _is_free(value: Any) -> bool:
    return bool(value.shape) and not isinstance(value.shape[0], int)


def _instead(old: torch.Tensor, new: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    return (new if tensor is old else tensor).detach().cpu()


def refuse_fixed(
    path: Path, call: tuple[tuple[Any, ...], dict[str, Any]], model: nn.Module, doubtful: Sequence[tuple[str, int]]
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
    for name, axis in doubtful:
        given = input_names(model.forward, *call)[name]
        size = given.shape[axis]
        other = torch.cat([given, given], axis) if size < 2 else given.narrow(axis, 0, size - 1)
        args, kwargs = mapped(call, partial(_instead, given, other))
        try:
            with torch.no_grad():
                expected = list(named_outputs(model(*args, **kwargs)).values())
            found = OnnxModel(path, model.forward)(*args, **kwargs)
            same = all(a.shape == b.shape for a, b in zip(found, expected, strict=True))
        except (CompressionError, RuntimeError, ValueError, IndexError):
            same = False
        if not same:
            raise CompressionError(
                f"to_onnx.dynamic_axes: dimension {axis} of {name!r} is {size} in the exported graph: "
                f"{type(model).__name__} computes with its size as a number. Leave it out, or compute with x.shape."
            )
