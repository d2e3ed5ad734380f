"""Quantization-aware training: ``prepare`` a model, train it, ``strip`` it again; or ``calibrate`` without training."""

from lightning_compress.quantization.attach import Quantization, attach, find, install, prepare, strip
from lightning_compress.quantization.calibration import calibrate
from lightning_compress.quantization.settings import ActivationSpec, QuantizationSettings, WeightSpec

__all__ = [
    "ActivationSpec",
    "Quantization",
    "QuantizationSettings",
    "WeightSpec",
    "attach",
    "calibrate",
    "find",
    "install",
    "prepare",
    "strip",
]
