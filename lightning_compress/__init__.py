"""Compression-aware training for PyTorch Lightning: prune, quantize, export, verify and choose."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_compress.callbacks import (
        CompressedCheckpoint,
        CompressedExport,
        CompressionMonitor,
        GradualMagnitudePruning,
        KnowledgeDistillation,
        QuantizationAwareTraining,
    )
    from lightning_compress.errors import CompressionError

__version__ = "0.1.0"

_HOMES = {
    "CompressedCheckpoint": "lightning_compress.callbacks",
    "CompressedExport": "lightning_compress.callbacks",
    "CompressionError": "lightning_compress.errors",
    "CompressionMonitor": "lightning_compress.callbacks",
    "GradualMagnitudePruning": "lightning_compress.callbacks",
    "KnowledgeDistillation": "lightning_compress.callbacks",
    "QuantizationAwareTraining": "lightning_compress.callbacks",
}

__all__ = [
    "CompressedCheckpoint",
    "CompressedExport",
    "CompressionError",
    "CompressionMonitor",
    "GradualMagnitudePruning",
    "KnowledgeDistillation",
    "QuantizationAwareTraining",
    "__version__",
]


def __getattr__(name: str) -> Any:
    # Lazy, so that the console script answers --help without loading torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
