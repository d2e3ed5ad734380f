"""One training for each library that people use with Lightning, as the library's documentation writes it.

Each module has ``REQUIREMENTS``, what its environment needs beside PyTorch and this package; ``LINES``, what a user
adds to the library's own example; and ``train(callbacks, folder)``, which trains on tiny data of its own making and
returns the trained LightningModule with the library's own way to predict.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

NAMES = (
    "chemprop",
    "darts",
    "neuralforecast",
    "gluonts",
    "scvi_tools",
    "pytorch_forecasting",
    "pytorch_tabular",
    "transformers",
    "monai",
    "segmentation_models",
    "lightly",
    "litgpt",
    "torch_geometric",
    "anomalib",
)

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""What every Trainer here is given, so that a run prints and keeps nothing."""


@dataclass
class Trained:
    """What a library has after a fit.

    Attributes:
        module: The LightningModule.
        predict: The library's own prediction, on data of the training.
    """

    module: Any
    predict: Callable[[], Any]


def load(name: str) -> ModuleType:
    """The module of a library's training; the library itself is imported when it trains."""
    return importlib.import_module(f"libraries.{name}")
