"""compressed-tensors as a format of an export."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from lightning_compress.export.compressed_tensors.checkpoint import (
    CompressedTensorsFile,
    load_compressed_tensors,
    save_compressed_tensors,
)
from lightning_compress.export.file_format import WeightsFormat


class CompressedTensors(WeightsFormat):
    """A checkpoint that vLLM and transformers read, with Linear layers in integers."""

    name, file, beside = "compressed_tensors", "model.safetensors", "config.json"

    def write(self, model: nn.Module, path: Path) -> CompressedTensorsFile:
        """Write a module."""
        return save_compressed_tensors(model, path)

    def load(self, path: Path, model: nn.Module) -> nn.Module:
        """Load the dequantized weights."""
        return load_compressed_tensors(path, model)
