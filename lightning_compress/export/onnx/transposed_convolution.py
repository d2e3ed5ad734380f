"""Transposed convolutions as convolutions and a shuffle of pixels, for which ONNX Runtime has integer kernels.

With stride s, output pixel s·m + φ of a transposed convolution reads the inputs m - t with the taps φ + s·t of its
kernel, so its s² phases are s² channels of an ordinary convolution with ceil(kernel / s) taps (Shi et al. 2016, "Is the
deconvolution layer the same as a convolutional layer?"). The rewrite moves integers about and computes none again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_compress.export.onnx.ir import initializer, node_of, take_over, weight_behind

_ELEMENTWISE = frozenset({"Relu", "Clip", "QuantizeLinear"})


def convolve_instead(graph: Any) -> None:
    """Rewrite two-dimensional transposed convolutions whose weight is stored in integers and whose result is quantized.

    The activation and the quantizer behind one act before the pixels are shuffled, where the integer kernel takes them
    in, and once more behind, where they change nothing and the next integer kernel finds them.
    """
    for node in list(graph):
        if node.op_type == "ConvTranspose" and (chain := _chain(node)) and _fits(node):
            _rewrite(graph, node, chain)


def _chain(node: Any) -> list[Any]:
    """The nodes behind a convolution up to the DequantizeLinear of its result; empty if there is no such chain."""
    found: list[Any] = []
    value = node.outputs[0]
    while True:
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            return []
        user = uses[0].node
        found.append(user)
        if user.op_type == "DequantizeLinear":
            return found
        if user.op_type not in _ELEMENTWISE:
            return []
        value = user.outputs[0]


def _fits(node: Any) -> bool:
    if (dequantize := weight_behind(node.inputs[1])) is None or dequantize.attributes["block_size"].as_int():
        return False
    weight = dequantize.inputs[0].const_value.numpy()
    settings = _settings(node, weight.ndim - 2)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and bias.const_value is None and weight_behind(bias) is None:
        return False
    padded = "auto_pad" in node.attributes and node.attributes["auto_pad"].as_string() != "NOTSET"
    if weight.ndim != 4 or settings["group"] != 1 or padded:
        return False
    stride, pads = settings["strides"], settings["pads"]
    one_stride = stride[0] == stride[1] and settings["dilations"] == [1, 1]
    return one_stride and pads[:2] == pads[2:] and min(_cropped(weight.shape[2:], settings)) >= 0


def _settings(node: Any, dimensions: int) -> dict[str, Any]:
    defaults = {"strides": [1], "dilations": [1], "output_padding": [0]}
    found: dict[str, Any] = {
        name: list(node.attributes[name].as_ints()) if name in node.attributes else value * dimensions
        for name, value in defaults.items()
    }
    found["pads"] = list(node.attributes["pads"].as_ints()) if "pads" in node.attributes else [0] * 2 * dimensions
    found["group"] = node.attributes["group"].as_int() if "group" in node.attributes else 1
    return found


def _cropped(kernel: tuple[int, ...], settings: dict[str, Any]) -> list[int]:
    """Rows and columns that the shuffled result has too many at its end."""
    return [
        stride * -(-size // stride) + pad - size - extra
        for size, stride, pad, extra in zip(
            kernel, settings["strides"], settings["pads"], settings["output_padding"], strict=False
        )
    ]


def _rewrite(graph: Any, node: Any, chain: list[Any]) -> None:
    dequantize = node.inputs[1].producer()
    weight, scale, zero_point = (value and value.const_value.numpy() for value in (*dequantize.inputs, None)[:3])
    settings = _settings(node, 2)
    stride, pads, cropped = settings["strides"][0], settings["pads"], _cropped(weight.shape[2:], settings)
    name, phases = f"{node.name}_subpixel", stride * stride
    taps = [-(-size // stride) for size in weight.shape[2:]]
    inputs = [
        initializer(graph, f"{name}_weight", _subpixel(weight, stride, taps)),
        initializer(graph, f"{name}_scale", scale.repeat(phases) if scale.ndim else scale),
        initializer(graph, f"{name}_zero_point", zero_point.repeat(phases) if scale.ndim else zero_point),
    ]
    made = [node_of("DequantizeLinear", inputs, {"axis": 0, "block_size": 0}, f"{name}_dequantize")]
    operands = [node.inputs[0], made[0].outputs[0]]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = _bias(graph, node.inputs[2], phases, name)
        made += bias[:-1]
        operands.append(bias[-1])
    around = [taps[0] - 1, taps[1] - 1] * 2
    made.append(node_of("Conv", operands, {"pads": around, "kernel_shape": taps, "strides": [1, 1], "group": 1}, name))
    made += _again(chain, made[-1].outputs[0], name)
    shuffle = {"blocksize": stride, "mode": "CRD"}
    if stride > 1:
        made.append(node_of("DepthToSpace", [made[-1].outputs[0]], shuffle, f"{name}_shuffle"))
    if any(pads) or any(cropped):
        ends = [-extra if extra else np.iinfo(np.int64).max for extra in cropped]
        bounds = [("starts", pads[:2]), ("ends", ends), ("axes", [2, 3])]
        window = [initializer(graph, f"{name}_{which}", np.asarray(at, np.int64)) for which, at in bounds]
        made.append(node_of("Slice", [made[-1].outputs[0], *window], {}, f"{name}_crop"))
    quantizer = next(i for i, step in enumerate(chain) if step.op_type == "QuantizeLinear")
    made += _again(chain[quantizer:], made[-1].outputs[0], f"{name}_behind")
    for one in made:
        graph.insert_before(node, one)
    take_over(chain[-1].outputs[0], made[-1].outputs[0])
    graph.remove([*reversed(chain), node], safe=True)


def _subpixel(weight: np.ndarray[Any, Any], stride: int, taps: list[int]) -> np.ndarray[Any, Any]:
    """From ``[in, out, k, k]`` to ``[out · stride², in, taps, taps]``; taps beyond the kernel are 0."""
    inputs, outputs, *kernel = weight.shape
    wide = np.zeros((inputs, outputs, stride * taps[0], stride * taps[1]), weight.dtype)
    wide[:, :, : kernel[0], : kernel[1]] = weight
    # A convolution runs through its taps the other way round.
    split = wide.reshape(inputs, outputs, taps[0], stride, taps[1], stride)[:, :, ::-1, :, ::-1]
    return np.ascontiguousarray(
        split.transpose(1, 3, 5, 0, 2, 4).reshape(outputs * stride * stride, inputs, taps[0], taps[1])
    )


def _bias(graph: Any, value: Any, phases: int, name: str) -> list[Any]:
    """The bias of every phase: nodes to insert, and last the value to read."""
    if value.const_value is not None:
        return [initializer(graph, f"{name}_bias", value.const_value.numpy().repeat(phases))]
    stored, scale = (part.const_value.numpy() for part in value.producer().inputs[:2])
    inputs = [
        initializer(graph, f"{name}_bias", stored.repeat(phases)),
        initializer(graph, f"{name}_bias_scale", scale.repeat(phases) if scale.ndim else scale),
    ]
    made = node_of("DequantizeLinear", inputs, {"axis": 0, "block_size": 0}, f"{name}_bias_dequantize")
    return [made, made.outputs[0]]


def _again(chain: list[Any], value: Any, name: str) -> list[Any]:
    """The same nodes once more, the first of them on another value."""
    import onnx_ir as ir

    made: list[Any] = []
    for step in chain:
        inputs = [value, *step.inputs[1:]]
        made.append(ir.Node("", step.op_type, inputs, list(step.attributes.values()), name=f"{name}_{step.name}"))
        value = made[-1].outputs[0]
    return made
