"""ExecuTorch as a format of an export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from lightning_compress.export.executorch.write import (
    ExecuTorchModel,
    executorch_name,
    to_executorch,
)
from lightning_compress.export.file_format import GraphFormat, OpenFile, one_by_one
from lightning_compress.export.fixed_batch import FixedBatchFile


class ExecuTorch(GraphFormat):
    """Programs for phones, with XNNPACK's integer operators; one sample a call."""

    name, file, package, dense = "executorch", "model.pte", "ExecuTorch", "own"

    def write(self, model: nn.Module, example_inputs: Any, path: Path, **settings: Any) -> FixedBatchFile:
        """Write a model."""
        return to_executorch(model, example_inputs, path)

    def open(self, path: Path, forward: Callable[..., Any], threads: int) -> OpenFile:
        """Load the program."""
        return one_by_one(ExecuTorchModel(path, forward), executorch_name())
