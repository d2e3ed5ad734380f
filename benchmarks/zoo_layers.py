"""A file against the trained model, layer by layer: each computes from the trained model's own integers.

Rounding that falls to the other side at one tie goes through all later layers of a network, and with random weights it
may end anywhere. Here it cannot: whatever reads a quantized tensor in the file is given the trained model's, and
whatever the file makes in its place is compared with that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from lightning_compress.export.onnx.session import open_session
from lightning_compress.foundation.example_inputs import call_arguments
from lightning_compress.quantization import find
from lightning_compress.quantization.quantizers.activation import ActivationQuantizer

TIES = 0.01
"""Share of a tensor's integers that may be on the other side of a tie; one always may."""

Grid = tuple[float, int]
"""Scale and zero point."""


@dataclass(frozen=True)
class Layerwise:
    """What a file makes of the trained model's integers.

    Attributes:
        outputs: The file's outputs.
        tensors: How many quantized tensors were compared.
        other: The largest share of other integers in one of them.
        off: The largest difference of an integer.
        wrong: Tensors with an integer that is off by more than one, or with more than ``TIES`` other integers.
    """

    outputs: list[torch.Tensor]
    tensors: int
    other: float
    off: int
    wrong: tuple[str, ...]


def layerwise(file: Path, network: nn.Module, inputs: Any, feed: Mapping[str, np.ndarray]) -> Layerwise:
    """Compare every quantized tensor of a file with that of the network it was written from.

    Args:
        file: ONNX file.
        network: The trained network, in evaluation.
        inputs: What it is called with.
        feed: The same as the file's inputs.
    """
    model = onnx.load(file)
    results = [output.name for output in model.graph.output]
    given = _cut(model, _shapes(file, model, feed), _integers(network, inputs))
    session = open_session(file, content=model.SerializeToString())
    found = session.run([*results, *given], {**feed, **{_source(name): made for name, made in given.items()}})
    outputs, made = found[: len(results)], dict(zip(given, found[len(results) :], strict=True))
    apart = {name: np.abs(made[name].astype(int) - given[name].astype(int)) for name in given if given[name].size}
    return Layerwise(
        outputs=[torch.from_numpy(output) for output in outputs],
        tensors=len(apart),
        other=max((float((each > 0).mean()) for each in apart.values()), default=0.0),
        off=max((int(each.max()) for each in apart.values()), default=0),
        wrong=tuple(
            name for name, each in apart.items() if each.max() > 1 or (each > 0).sum() > max(1, TIES * each.size)
        ),
    )


def _others(apart: np.ndarray) -> int:
    return int((apart > 0).sum())


def _integers(network: nn.Module, inputs: Any) -> dict[Grid, list[np.ndarray]]:
    """What passes the network's activation quantizers, by grid, in the order of the calls."""
    quantization = find(network)
    found: dict[Grid, list[np.ndarray]] = {}

    def see(quantizer: ActivationQuantizer, x: torch.Tensor) -> None:
        scale, zero_point = quantizer.scale, quantizer.zero_point
        integers = torch.clamp(torch.round(x / scale) + zero_point, quantizer.qmin, quantizer.qmax)
        found.setdefault((float(scale), int(zero_point)), []).append(integers.numpy())

    quantizers = [q for q in (quantization.activations.values() if quantization else ()) if q.observed]
    args, kwargs = call_arguments(inputs)
    try:
        for quantizer in quantizers:
            quantizer.watch = see
        with torch.no_grad():
            network(*args, **kwargs)
    finally:
        for quantizer in quantizers:
            quantizer.watch = None
    return found


def _source(name: str) -> str:
    return f"{name}_of_the_trained_model"


def _shapes(file: Path, model: Any, feed: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Result of a QuantizeLinear → its shape in one run."""
    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    names = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    seen.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    arrays = open_session(file, content=seen.SerializeToString()).run(names, dict(feed)) if names else []
    return {name: array.shape for name, array in zip(names, arrays, strict=True)}


def _cut(
    model: Any, shapes: Mapping[str, tuple[int, ...]], integers: Mapping[Grid, list[np.ndarray]]
) -> dict[str, np.ndarray]:
    """Make quantized tensors inputs and outputs of the graph; gives the trained model's by the tensor's name.

    Quantizers that are repeated behind what moves values are left: their grid was met before, in another shape.
    """
    graph = model.graph
    stored = {item.name: item for item in graph.initializer}
    waiting = {grid: list(arrays) for grid, arrays in integers.items()}
    given: dict[str, np.ndarray] = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero_point = (onnx.numpy_helper.to_array(stored[name]) for name in node.input[1:3])
            arrays = waiting.get((float(scale), int(zero_point)), [])
            if arrays and arrays[0].shape == shapes[node.output[0]]:
                given[node.output[0]] = arrays.pop(0).astype(zero_point.dtype)
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in given:
                node.input[index] = _source(name)
    for name, array in given.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(_source(name), kind, array.shape))
        graph.output.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
    return given
