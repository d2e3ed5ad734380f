"""Checkpoints in the form of the compressed-tensors project."""

from lightning_compress.export.compressed_tensors.checkpoint import (
    CompressedTensorsFile,
    load_compressed_tensors,
    save_compressed_tensors,
)

__all__ = ["CompressedTensorsFile", "load_compressed_tensors", "save_compressed_tensors"]
