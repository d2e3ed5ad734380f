"""What a compressed model weighs and costs: sparsity, bits, bytes and bit operations."""

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
