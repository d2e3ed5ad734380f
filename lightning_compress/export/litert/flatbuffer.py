"""``.tflite`` files as objects of LiteRT's schema: what they hold, and changes to it."""

from __future__ import annotations

import json
from typing import Any

from lightning_compress.errors import CompressionError

_IDENTIFIER = b"TFL3"
_ALIGNMENT = 16
_OURS = b"lightning_compress"


def parsed(data: bytes) -> Any:
    """A file as an object of the schema's class ``ModelT``."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))


def packed(model: Any) -> bytes:
    """The file of an object; constants lie at multiples of 16 bytes, as kernels read them."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    for buffer in model.buffers:
        buffer.Pack = _aligned(buffer)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())
