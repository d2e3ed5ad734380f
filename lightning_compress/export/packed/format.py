"""Packed files as a format of an export."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lightning_compress.export.activations import Activations, activations_of
from lightning_compress.export.file_format import WeightsFormat
from lightning_compress.export.packed.save_load import PackedFile, load_packed, save_packed
from lightning_compress.quantization import strip


class Packed(WeightsFormat):
    """All tensors of a module, coded close to their entropy."""

    name, file = "packed", "model.packed"

    def write(self, model: nn.Module, path: Path) -> PackedFile:
        """Write a module."""
        return save_packed(model, path)

    def load(self, path: Path, model: nn.Module) -> nn.Module:
        """Load it, with its quantizers."""
        return load_packed(path, model)

    def breakdown(self, path: Path, written: PackedFile) -> dict[str, int]:
        """Bytes by what they code."""
        return dict(written.breakdown)

    def activations(
        self, path: Path, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], threads: int
    ) -> Activations:
        """Those of a copy of the model that the file is loaded into."""
        return activations_of(load_packed(path, strip(copy.deepcopy(model))).cpu().eval(), args, kwargs)
