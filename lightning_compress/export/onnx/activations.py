"""Activations inside an ONNX file: its dequantized tensors as further outputs of a copy of the graph in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.export.activations import Activation, Activations
from lightning_compress.export.onnx.session import OnnxModel


def activations_of_file(
    path: Path, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], threads: int
) -> Activations:
    """Run an ONNX file, and keep its activations. ONNX Runtime still takes its integer kernels.

    Args:
        path: The file.
        model: The model that it was written from; its forward names the inputs, its modules the layers.
        args: Positional arguments of one call.
        kwargs: Keyword arguments.
        threads: Threads of ONNX Runtime.

    Raises:
        CompressionError: The file cannot be read or run.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph_model = onnx.load(path)
    except (DecodeError, OSError) as error:
        raise CompressionError(f"{path}: cannot be read as ONNX ({error}).") from error
    graph = graph_model.graph
    constants = {item.name: item for item in graph.initializer}
    places = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] not in constants]
    outputs = [item.name for item in graph.output]
    added = [node.output[0] for node in places if node.output[0] not in outputs]
    graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in added)
    session = OnnxModel(path, model.forward, threads=threads, content=graph_model.SerializeToString())
    values = dict(zip((*outputs, *added), session(*args, **kwargs), strict=True))
    producers = {name: node for node in graph.node for name in node.output}
    ends = {node.output[0] for node in places}
    names = {name for name, _ in model.named_modules()}
    seen = []
    for node in places:
        scale, zero = (constants.get(name) for name in (*node.input[1:], "", "")[:2])
        grid = (float(_number(scale, 1.0)), int(_number(zero, 0.0)))
        layers = _layers_behind(node, producers, ends, constants, names)
        seen.append(Activation(node.output[0], values[node.output[0]], grid, layers))
    last = producers.get(outputs[0])
    behind = () if last is None or outputs[0] in ends else _layers_behind(last, producers, ends, constants, names)
    return Activations(seen, [values[name] for name in outputs], behind)


def _number(constant: Any, default: float) -> float:
    import onnx

    return default if constant is None else float(onnx.numpy_helper.to_array(constant).reshape(-1)[0])


def _layers_behind(
    node: Any, producers: Mapping[str, Any], ends: set[str], constants: Mapping[str, Any], modules: set[str]
) -> tuple[str, ...]:
    """Modules whose constants a node's result is made from, back to the dequantized activations before it."""
    found: dict[str, None] = {}
    waiting, known = list(node.input), set()
    while waiting:
        name = waiting.pop()
        if name in known or name in ends:
            continue
        known.add(name)
        if name in constants:
            owner = name.rpartition(".")[0]
            if owner and owner in modules:
                found[owner] = None
        elif name in producers:
            waiting.extend(producers[name].input)
    return tuple(sorted(found))
