"""``.tflite`` files as objects of LiteRT's schema: what they take and give, and which operators they hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16
_LAYOUT = "lightning_compress.channels_last"


def parsed(data: bytes) -> Any:
    """A file as an object of the schema's class ``ModelT``."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))


def channels_last(model: Any) -> bool:
    """Whether a file says that its inputs and outputs of four dimensions have their channels last."""
    return any(entry.name in (_LAYOUT, _LAYOUT.encode()) for entry in model.metadata or ())


def changed(data: bytes, *, floats: bool, last: bool) -> bytes:
    """A file that says its layout, and takes and gives floats where it had integers on a grid.

    Args:
        data: The file.
        floats: Whether to put a QUANTIZE in front of integer inputs and a DEQUANTIZE behind integer outputs.
        last: Whether to note that channels are last.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = parsed(data)
    if last:
        entry = schema.MetadataT()
        entry.name, entry.buffer = _LAYOUT, 0
        model.metadata = [*(model.metadata or ()), entry]
    if floats:
        graph, ends = model.subgraphs[0], model.signatureDefs[0]
        inputs, outputs = list(graph.inputs), list(graph.outputs)
        before = _converted(model, inputs, ends.inputs, "QUANTIZE", lambda here, outside: (outside, here))
        behind = _converted(model, outputs, ends.outputs, "DEQUANTIZE", lambda here, outside: (here, outside))
        graph.inputs, graph.outputs = inputs, outputs
        graph.operators = [*before, *graph.operators, *behind]
    return _packed(model)


def _converted(
    model: Any, tensors: list[int], names: list[Any], kind: str, order: Callable[[int, int], tuple[int, int]]
) -> list[Any]:
    """Replace integer tensors by float ones; gives the operators between the two."""
    from ai_edge_litert import schema_py_generated as schema

    graph, operators = model.subgraphs[0], []
    for place, here in enumerate(list(tensors)):
        inside = graph.tensors[here]
        if inside.type != schema.TensorType.INT8 or inside.quantization is None or inside.quantization.scale is None:
            continue
        outside = schema.TensorT()
        outside.name, outside.shape = b"float_" + bytes(inside.name), inside.shape
        outside.shapeSignature, outside.type, outside.buffer = inside.shapeSignature, schema.TensorType.FLOAT32, 0
        graph.tensors.append(outside)
        tensors[place] = len(graph.tensors) - 1
        for entry in names:
            if entry.tensorIndex == here:
                entry.tensorIndex = tensors[place]
        operator = schema.OperatorT()
        operator.opcodeIndex = _code(model, kind)
        read, written = order(here, tensors[place])
        operator.inputs, operator.outputs = [read], [written]
        operators.append(operator)
    return operators


def _code(model: Any, kind: str) -> int:
    """Index of an operator among those that the file uses."""
    from ai_edge_litert import schema_py_generated as schema

    number = getattr(schema.BuiltinOperator, kind)
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == number:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = number
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _packed(model: Any) -> bytes:
    """The file of an object, its constants at multiples of 16 bytes, as the schema wants and kernels read them."""
    import flatbuffers

    for buffer in model.buffers:
        buffer.Pack = MethodType(_pack_buffer, buffer)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _pack_buffer(buffer: Any, builder: Any) -> int:
    from ai_edge_litert import schema_py_generated as schema

    data = None
    if buffer.data is not None:
        content = bytes(bytearray(buffer.data))
        builder.StartVector(1, len(content), _ALIGNMENT)
        builder.head -= len(content)
        builder.Bytes[builder.Head() : builder.Head() + len(content)] = content
        data = builder.EndVector()
    schema.BufferStart(builder)
    if data is not None:
        schema.BufferAddData(builder, data)
    return int(schema.BufferEnd(builder))


@dataclass(frozen=True)
class Operator:
    """One operator of a file.

    Attributes:
        name: As the schema has it, such as ``"CONV_2D"``.
        read: Indices of the tensors that it reads; one that is left out is -1.
        written: Indices of those that it writes.
    """

    name: str
    read: tuple[int, ...]
    written: tuple[int, ...]


def operators(model: Any) -> list[Operator]:
    """Operators of a file in order."""
    from ai_edge_litert import schema_py_generated as schema

    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    codes = [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
    return [
        Operator(codes[each.opcodeIndex], tuple(map(int, each.inputs)), tuple(map(int, each.outputs)))
        for each in model.subgraphs[0].operators
    ]
