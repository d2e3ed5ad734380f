"""LiteRT as a format of an export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from lightning_compress.export.activations import Activation, Activations
from lightning_compress.export.file_format import GraphFormat, OpenFile
from lightning_compress.export.fixed_batch import FixedBatchFile
from lightning_compress.export.integer_share import IntegerShare
from lightning_compress.export.litert.integer_operators import litert_integer_share
from lightning_compress.export.litert.run import LiteRTModel, litert_name
from lightning_compress.export.litert.settings import LiteRTSettings
from lightning_compress.export.litert.write import to_litert


class LiteRT(GraphFormat):
    """Integers throughout, for phones, boards and microcontrollers; one sample a call."""

    name, file, package, imported, dense = "litert", "model.tflite", "LiteRT", "litert_torch", "own"
    settings = frozenset({"litert"})

    def write(
        self,
        model: nn.Module,
        example_inputs: Any,
        path: Path,
        *,
        litert: LiteRTSettings | None = None,
        **settings: Any,
    ) -> FixedBatchFile:
        """Write a model."""
        return to_litert(model, example_inputs, path, **asdict(litert or LiteRTSettings()))

    def open(self, path: Path, forward: Callable[..., Any], threads: int) -> OpenFile:
        """Load the file in LiteRT's interpreter."""
        model = LiteRTModel(path, forward, threads=threads)
        return OpenFile(model, litert_name(threads), model.prepared)

    def activations(
        self, path: Path, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], threads: int
    ) -> Activations:
        """What LiteRT's reference kernels keep."""
        values, outputs = LiteRTModel(path, model.forward, kernels="reference").activations(*args, **kwargs)
        return Activations([Activation("", value, grid, channels_last=True) for value, grid in values], outputs)

    def integer_share(
        self, path: Path, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], threads: int
    ) -> IntegerShare:
        """By the types of the tensors around each operator."""
        return litert_integer_share(path)
