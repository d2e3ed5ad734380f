"""Writing a compressed model to disk, and verifying what was written."""

from lightning_compress.export.onnx.write import OnnxFile, to_onnx
from lightning_compress.export.packed.save_load import PackedFile, load_packed, save_packed
from lightning_compress.export.verification import Verification, verify

__all__ = [
    "OnnxFile",
    "PackedFile",
    "Verification",
    "load_packed",
    "save_packed",
    "to_onnx",
    "verify",
]
