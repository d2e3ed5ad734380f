"""Writing the files of an export, and what the report says of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lightning_compress.delivery.network_call import Entry
from lightning_compress.delivery.size_accounting import zipped
from lightning_compress.errors import CompressionError
from lightning_compress.export.compressed_tensors import save_compressed_tensors
from lightning_compress.export.executorch.write import to_executorch
from lightning_compress.export.formats import BESIDE, FILES
from lightning_compress.export.litert.settings import LiteRTSettings
from lightning_compress.export.litert.write import to_litert
from lightning_compress.export.onnx.write import to_onnx
from lightning_compress.export.openvino import to_openvino
from lightning_compress.export.packed.save_load import PackedFile, save_packed
from lightning_compress.export.pt2.write import to_torch_export
from lightning_compress.foundation.checksum import sha256


@dataclass(frozen=True)
class GraphSettings:
    """How the files that hold a graph take and give tensors.

    Attributes:
        input_names: Names of the inputs; those of the forward's parameters by default.
        output_names: Names of the outputs; by default the keys or fields under which the forward returns them.
        dynamic_batch: Whether the batch is left free where that can be.
        litert: The same of a LiteRT file.
    """

    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    dynamic_batch: bool = True
    litert: LiteRTSettings = LiteRTSettings()  # noqa: RUF009


@dataclass(frozen=True)
class Files:
    """Writes a model to a directory, each format under its own file name.

    Attributes:
        folder: The directory.
        entry: The call of the network that is traced.
        provenance: What ONNX files say of where they come from.
        settings: How graphs take and give tensors.
        axes: Input's name → dimensions beside the batch whose sizes differ in the data, with a name. Graphs leave them
            free where that can be.
        notes: Gets what a reader should know of the files that were written.
    """

    folder: Path
    entry: Entry
    provenance: Mapping[str, str] = field(default_factory=dict)
    settings: GraphSettings = field(default_factory=GraphSettings)
    axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def write(self, item: str, model: nn.Module, whole: nn.Module) -> PackedFile | None:
        """Write one format.

        Args:
            item: The format.
            model: A copy of the module that calls the network.
            whole: A copy of the module, for formats that hold all its tensors and no graph.

        Returns:
            The packed file, where that is the format.
        """
        path = self.folder / FILES[item]
        if item == "packed":
            return save_packed(whole, path)
        if item == "compressed_tensors":
            save_compressed_tensors(whole, path)
        elif item == "onnx":
            self.write_onnx(model, path.name)
        elif item == "openvino":
            self._graph(to_openvino, model, path, **self._names)
        elif item == "torch_export":
            self._graph(to_torch_export, model, path)
        elif item == "executorch":
            to_executorch(model, self.entry.example_inputs, path)
        elif item == "litert":
            to_litert(model, self.entry.example_inputs, path, **asdict(self.settings.litert))
        return None

    def write_onnx(self, model: nn.Module, name: str) -> None:
        """Write an ONNX file under a name of its own."""
        file = self._graph(to_onnx, model, self.folder / name, metadata=self.provenance, **self._names)
        if file.int4:
            self._note(
                f"{name} holds INT4 weights, and ran with session.qdq_matmulnbits_accuracy_level=1: by default ONNX "
                f"Runtime rounds the float activations that it multiplies by them to 8 bits. Set the same where you "
                f"deploy."
            )

    @property
    def _names(self) -> dict[str, Any]:
        return {"input_names": self.settings.input_names, "output_names": self.settings.output_names}

    def _graph(self, write: Callable[..., Any], model: nn.Module, path: Path, **settings: Any) -> Any:
        """Write a graph with a free batch, or else for one sample a call, and note what came out."""
        free = self.settings.dynamic_batch
        settings["dynamic_axes"] = self.axes
        try:
            file = write(model, self.entry.example_inputs, path, dynamic_batch=free, **settings)
        except CompressionError:
            if not self.axes:
                raise
            settings["dynamic_axes"] = {}
            file = write(model, self.entry.example_inputs, path, dynamic_batch=free, **settings)
            sizes = ", ".join(f"dimension {axis} of {name}" for name, axes in self.axes.items() for axis in axes)
            self._note(
                f"{path.name} takes one size alone of {sizes}, which differs in the data: the network reads it as a "
                f"number."
            )
        if free and file.batch is not None:
            one = self.entry.first(1, model)
            if file.batch != 1 and one is not self.entry:
                file = write(model, one.example_inputs, path, dynamic_batch=False, **settings)
            self._note(
                f"{path.name} takes {file.batch} sample{'s' if file.batch > 1 else ''} a call: the network reads the "
                f"size of its batch as a number, as len(x) and int(x.shape[0]) do."
            )
        if file.left_out:
            self._note(f"{path.name} gives tensors alone: {', '.join(file.left_out)} among the results is left out.")
        return file

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def artifact(self, item: str, packed: PackedFile | None) -> dict[str, Any]:
        """What the report says of a written format."""
        path = self.folder / FILES[item]
        size = path.stat().st_size
        beside = {BESIDE[item]: self.folder / BESIDE[item]} if item in BESIDE else {}
        more = {name: file.stat().st_size for name, file in beside.items()}
        if packed is not None:
            breakdown = dict(packed.breakdown)
        elif item == "onnx":
            breakdown = onnx_breakdown(path)
        else:
            breakdown = {path.name: size, **more}
        return {
            "format": item,
            "file": path.name,
            "bytes": size + sum(more.values()),
            "sha256": sha256(path),
            "breakdown": breakdown,
            "zipped": zipped(path, *beside.values()),
            "beside": {name: sha256(file) for name, file in beside.items()},
        }


def onnx_breakdown(path: Path) -> dict[str, int]:
    """Bytes of an ONNX file by what they hold: ``integers`` and ``floats`` of its constants, and the ``graph``."""
    import onnx

    parts = {"integers": 0, "floats": 0}
    for constant in onnx.load(path).graph.initializer:
        array = onnx.numpy_helper.to_array(constant)
        parts["floats" if array.dtype.kind == "f" else "integers"] += array.nbytes
    return {**parts, "graph": path.stat().st_size - sum(parts.values())}
