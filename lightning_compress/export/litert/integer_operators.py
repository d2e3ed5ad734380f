"""Which operators of a ``.tflite`` file compute in integers, and which do not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning_compress.export.integer_share import FloatOperation, IntegerShare
from lightning_compress.export.litert.flatbuffer import operators, parsed

_BORDERS = ("QUANTIZE", "DEQUANTIZE")
_MATRICES = ("FULLY_CONNECTED", "BATCH_MATMUL")


def litert_integer_share(path: str | Path) -> IntegerShare:
    """See which operators of a file read and write float32.

    Multiply-adds are those of one call. A float operator that multiplies nothing, as of a layer norm, counts with 0.

    Args:
        path: The file.
    """
    from ai_edge_litert import schema_py_generated as schema

    total = integer = 0
    floats: list[FloatOperation] = []
    model = parsed(Path(path).read_bytes())
    tensors = model.subgraphs[0].tensors
    for operator in operators(model):
        read, written = [tensors[i] for i in operator.read if i >= 0], [tensors[i] for i in operator.written]
        macs = _macs(operator.name, read, written)
        total += macs
        if operator.name in _BORDERS or all(t.type != schema.TensorType.FLOAT32 for t in (*read, *written)):
            integer += macs
        else:
            reason = f"LiteRT's operator {operator.name} is in float: a tensor around it has no quantizer"
            floats.append(FloatOperation(_layer(written[0]), operator.name, macs, reason))
    return IntegerShare(total, integer, tuple(sorted(floats, key=lambda operation: -operation.macs)))


def _macs(name: str, read: list[Any], written: list[Any]) -> int:
    """Multiply-accumulates of one operator."""
    result = math.prod(written[0].shape) if written and written[0].shape is not None else 1
    if name == "CONV_2D":
        return int(result * math.prod(read[1].shape[1:]))
    if name == "DEPTHWISE_CONV_2D":
        return int(result * math.prod(read[1].shape[1:3]))
    if name == "TRANSPOSE_CONV":
        return int(math.prod(read[2].shape) * math.prod(read[1].shape[:3]))
    return int(result * read[0].shape[-1]) if name in _MATRICES else 0


def _layer(tensor: Any) -> str:
    """The module that made a tensor, by the name that the converter gave it."""
    return bytes(tensor.name).decode(errors="replace").rpartition(";")[0].rpartition("/")[2] or "the network"
