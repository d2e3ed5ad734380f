"""Writing a compressed model to disk, and proving what was written."""

from lightning_compress.export.onnx import OnnxFile, to_onnx

__all__ = ["OnnxFile", "to_onnx"]
