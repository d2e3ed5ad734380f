"""Quantization-aware training: ``prepare`` a model, train it, ``strip`` it again."""

from lightning_compress.quantization.attach import Quantization, attach, find, install, prepare, strip
from lightning_compress.quantization.settings import ActivationSpec, QuantizationSettings, WeightSpec

__all__ = [
    "ActivationSpec",
    "Quantization",
    "QuantizationSettings",
    "WeightSpec",
    "attach",
    "find",
    "install",
    "prepare",
    "strip",
]
