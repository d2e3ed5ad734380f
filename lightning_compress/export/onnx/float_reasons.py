"""Why a product or a sum of an ONNX graph has no integer kernel, and what would give it one."""

from __future__ import annotations

from typing import Any

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What ONNX Runtime carries a quantizer over, or a kernel takes in.
_PASSED = frozenset({"Flatten", "Identity", "MaxPool", "Relu", "Clip", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


def graph_reasons(graph: Any) -> dict[str, tuple[str, str]]:
    """What would stand between each product or sum of activations and an integer kernel.

    Args:
        graph: An ``onnx.GraphProto`` before a runtime changed it.

    Returns:
        Node's name → the layer that it belongs to or its own name, and the reason.
    """
    return _Reasons(graph).all()


class _Reasons:
    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.stored = {item.name: item for item in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def all(self) -> dict[str, tuple[str, str]]:
        found = {}
        for node in self.graph.node:
            if node.op_type in _RECURRENT:
                found[node.name] = (
                    self._layer(node),
                    f"ONNX Runtime has no integer kernel for {node.op_type} layers with stored ranges: their weights "
                    "are stored in 8 bits and computed in float",
                )
            elif node.op_type in _PRODUCTS:
                both = self._is_activation(node.input[1])
                found[node.name] = (node.name if both else self._layer(node), self._of_product(node))
            elif node.op_type == "Add" and all(self._is_activation(name) for name in node.input):
                found[node.name] = (node.name, self._of_sum(node))
        return found

    def _of_product(self, node: Any) -> str:
        if self._is_activation(node.input[1]):
            return (
                "a product of two activations: ONNX Runtime needs both quantized, and no quantizer stands before one; "
                "train with backend='onnxruntime' and activation_bits, or wrap what makes it in a module"
            )
        if not self._is_dequantized(node.input[1]):
            if self.makers.get(node.input[1]) is not None or node.input[1] in self.stored:
                return (
                    "its weight is stored in float: it is left out by targets, overrides or ignore, or computed from "
                    "others when the model runs; select it, or make it a parameter"
                )
            return "its weight is no stored tensor"
        if self._is_signed(node.input[0]):
            return (
                "its activations are signed, for which ONNX Runtime has no fast kernels on x86; "
                "activation_scheme='affine' has"
            )
        if not self._is_dequantized(node.input[0]):
            return (
                "no quantizer stands before its input; give its layer activation_bits, or wrap what makes the input in "
                "a module"
            )
        if node.op_type in ("Conv", "ConvTranspose") and not self._meets_quantizer(node.output[0]):
            return (
                "no quantizer stands behind its output, where ONNX Runtime's integer convolution writes integers; "
                "train with backend='onnxruntime', and make its output a module's"
            )
        if any(reader.op_type in ("Relu", "Clip") for reader in self.readers.get(node.output[0], [])):
            return (
                "no quantizer stands behind its activation, which ONNX Runtime then fuses into a float kernel; "
                "quantize the layer that reads it"
            )
        if node.op_type == "MatMul" and self._adds_float(node.output[0]):
            return (
                "its bias is stored in float, with which ONNX Runtime makes a float Gemm of it where sizes are fixed; "
                "leave the batch free"
            )
        return "ONNX Runtime chose a float kernel though input, weight and output are quantized"

    def _adds_float(self, name: str) -> bool:
        """Whether a bias in float is added to a value."""
        return any(
            reader.op_type == "Add"
            and any(i in self.stored or not self._is_activation(i) for i in reader.input)
            and not any(self._is_dequantized(i) for i in reader.input)
            for reader in self.readers.get(name, [])
        )

    def _of_sum(self, node: Any) -> str:
        if self._meets_quantizer(node.output[0]):
            return (
                "a sum of which an input is not quantized; ONNX Runtime adds integers where both inputs and the result "
                "are"
            )
        return (
            "a sum whose result is not quantized, since what reads it computes in float, as a norm does: integers "
            "would gain nothing there"
        )

    def _layer(self, node: Any) -> str:
        """The module that owns the stored tensors which a node reads."""
        for name in node.input[1:]:
            while name and name not in self.stored and name in self.makers and self.makers[name].input:
                name = self.makers[name].input[0]
            if name in self.stored and "." in name and not name.startswith(("val_", "node_")):
                return str(name.rpartition(".")[0])
        return str(node.name)

    def _is_activation(self, name: str) -> bool:
        """Whether a value depends on the graph's inputs."""
        waiting, known = [name], set()
        inputs = {value.name for value in self.graph.input}
        while waiting:
            name = waiting.pop()
            if name in inputs:
                return True
            if name and name not in known and name in self.makers:
                known.add(name)
                waiting.extend(self.makers[name].input)
        return False

    def _is_dequantized(self, name: str) -> bool:
        maker = self._behind(name)
        return maker is not None and maker.op_type == "DequantizeLinear"

    def _is_signed(self, name: str) -> bool:
        import onnx

        maker = self._behind(name)
        if maker is None or maker.op_type != "DequantizeLinear" or len(maker.input) < 3:
            return False
        zero_point = self.stored.get(maker.input[2])
        return zero_point is not None and zero_point.data_type == onnx.TensorProto.INT8

    def _behind(self, name: str) -> Any:
        maker = self.makers.get(name)
        while maker is not None and maker.op_type in _PASSED:
            maker = self.makers.get(maker.input[0])
        return maker

    def _meets_quantizer(self, name: str) -> bool:
        readers = self.readers.get(name, [])
        return bool(readers) and all(
            reader.op_type == "QuantizeLinear"
            or (reader.op_type in _PASSED and self._meets_quantizer(reader.output[0]))
            for reader in readers
        )
