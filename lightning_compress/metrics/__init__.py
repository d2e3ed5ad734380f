"""Sparsity, bit widths, bytes and bit operations of a compressed model."""

from lightning_compress.metrics.layer_table import LayerRow, describe
from lightning_compress.metrics.macs import Macs, count_macs
from lightning_compress.metrics.metrics import BitOperations, ModelSize, Sparsity, WeightBits

__all__ = [
    "BitOperations",
    "LayerRow",
    "Macs",
    "ModelSize",
    "Sparsity",
    "WeightBits",
    "count_macs",
    "describe",
]
