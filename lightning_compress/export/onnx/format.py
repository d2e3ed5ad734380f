"""ONNX as a format of an export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lightning_compress.export.activations import Activations
from lightning_compress.export.file_format import GraphFormat, OpenFile
from lightning_compress.export.integer_share import IntegerShare
from lightning_compress.export.onnx.activations import activations_of_file
from lightning_compress.export.onnx.integer_share import integer_share
from lightning_compress.export.onnx.session import OnnxModel, needs_exact_kernels, open_session, runtime_name
from lightning_compress.export.onnx.write import OnnxFile, refuse_projections, to_onnx


class Onnx(GraphFormat):
    """QuantizeLinear and DequantizeLinear, run by ONNX Runtime."""

    name, file, dense = "onnx", "model.onnx", "onnx"
    settings = frozenset({"dynamic_batch", "dynamic_axes", "input_names", "output_names", "metadata"})

    def write(self, model: nn.Module, example_inputs: Any, path: Path, **settings: Any) -> OnnxFile:
        """Write a model."""
        return to_onnx(model, example_inputs, path, **settings)

    def open(self, path: Path, forward: Callable[..., Any], threads: int) -> OpenFile:
        """Open a session."""
        model = OnnxModel(path, forward, threads=threads)

        def prepare(*args: Any, **kwargs: Any) -> Callable[[], Any]:
            feed = model.feed(*args, **kwargs)
            return lambda: model.session.run(None, feed)

        return OpenFile(model, runtime_name(threads), prepare)

    def breakdown(self, path: Path, written: Any) -> dict[str, int]:
        """Bytes of the file's constants, ``integers`` and ``floats``, and of the ``graph``."""
        import onnx

        parts = {"integers": 0, "floats": 0}
        for constant in onnx.load(path).graph.initializer:
            array = onnx.numpy_helper.to_array(constant)
            parts["floats" if array.dtype.kind == "f" else "integers"] += array.nbytes
        return {**parts, "graph": path.stat().st_size - sum(parts.values())}

    def refuse(self, model: nn.Module) -> None:
        """Refuse layers that ONNX has no operator for."""
        refuse_projections(model)

    def write_notes(self, written: OnnxFile) -> list[str]:
        """How INT4 weights run."""
        if not written.int4:
            return []
        return [
            f"{written.path.name} holds INT4 weights, and ran with session.qdq_matmulnbits_accuracy_level=1: by "
            f"default ONNX Runtime rounds the float activations that it multiplies by them to 8 bits. Set the same "
            f"where you deploy."
        ]

    def run_notes(self, path: Path) -> list[str]:
        """How a file for other processors runs here."""
        if not needs_exact_kernels(open_session(path)):
            return []
        return [
            "The file is for processors with VNNI (processor='vnni', or a backend that wants int8), and this one "
            "has none: ONNX Runtime ran its exact 8-bit kernels (session.x64quantprecision=1), since its default "
            "ones saturate here. Set the same where you deploy on such processors."
        ]

    def activations(
        self, path: Path, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], threads: int
    ) -> Activations:
        """The dequantized tensors of the graph."""
        return activations_of_file(path, model, args, kwargs, threads)

    def integer_share(
        self, path: Path, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], threads: int
    ) -> IntegerShare:
        """By the graph as ONNX Runtime optimizes it."""
        return integer_share(path, OnnxModel(path, model.forward, threads=threads).feed(*args, **kwargs))
