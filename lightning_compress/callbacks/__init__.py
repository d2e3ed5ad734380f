"""Thin adapters from Lightning's hooks to the core."""

from lightning_compress.callbacks.checkpoint import CompressedCheckpoint
from lightning_compress.callbacks.distillation import KnowledgeDistillation
from lightning_compress.callbacks.export import CompressedExport
from lightning_compress.callbacks.monitor import CompressionMonitor
from lightning_compress.callbacks.pruning import GradualMagnitudePruning
from lightning_compress.callbacks.quantization import QuantizationAwareTraining

__all__ = [
    "CompressedCheckpoint",
    "CompressedExport",
    "CompressionMonitor",
    "GradualMagnitudePruning",
    "KnowledgeDistillation",
    "QuantizationAwareTraining",
]
