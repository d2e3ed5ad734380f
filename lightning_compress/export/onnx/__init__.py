"""ONNX with QuantizeLinear and DequantizeLinear."""

from lightning_compress.export.onnx.write import OnnxFile, to_onnx

__all__ = ["OnnxFile", "to_onnx"]
