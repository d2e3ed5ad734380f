"""``torch.export`` as a format of an export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from lightning_compress.export.file_format import GraphFormat, OpenFile, one_by_one, pytorch_name
from lightning_compress.export.pt2.write import TorchExportFile, TorchExportModel, to_torch_export


class TorchExport(GraphFormat):
    """PyTorch's own graphs, in the operators that its compilers know."""

    name, file = "torch_export", "model.pt2"
    settings = frozenset({"dynamic_batch", "dynamic_axes"})

    def write(self, model: nn.Module, example_inputs: Any, path: Path, **settings: Any) -> TorchExportFile:
        """Write a model."""
        return to_torch_export(model, example_inputs, path, **settings)

    def open(self, path: Path, forward: Callable[..., Any], threads: int) -> OpenFile:
        """Load the program."""
        return one_by_one(TorchExportModel(path, forward), pytorch_name())
