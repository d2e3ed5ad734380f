"""Writing the files of an export, and what the report says of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lightning_compress.delivery.network_call import Entry
from lightning_compress.delivery.size_accounting import zipped
from lightning_compress.errors import CompressionError
from lightning_compress.export.file_format import GraphFormat, WeightsFormat
from lightning_compress.export.formats import FORMATS
from lightning_compress.export.litert.settings import LiteRTSettings
from lightning_compress.foundation.checksum import sha256


@dataclass(frozen=True)
class GraphSettings:
    """How the files that hold a graph take and give tensors.

    Attributes:
        input_names: Names of the inputs; those of the forward's parameters by default.
        output_names: Names of the outputs; by default the keys or fields under which the forward returns them.
        dynamic_batch: Whether the batch is left free where that can be.
        litert: How a LiteRT file takes and gives tensors.
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

    def write(self, item: str, model: nn.Module, whole: nn.Module) -> Any:
        """Write one format.

        Args:
            item: The format.
            model: A copy of the module that calls the network.
            whole: A copy of the module, for formats that hold all its tensors and no graph.

        Returns:
            What the format's writer gave.
        """
        kind = FORMATS[item]
        if isinstance(kind, WeightsFormat):
            return kind.write(whole, self.folder / kind.file)
        assert isinstance(kind, GraphFormat)
        return self.write_graph(kind, model, kind.file)

    def write_graph(self, kind: GraphFormat, model: nn.Module, name: str) -> Any:
        """Write a graph under a file name, with a free batch or else for one sample a call, and note what came out."""
        path, call = self.folder / name, self.entry
        known = {
            "input_names": self.settings.input_names,
            "output_names": self.settings.output_names,
            "metadata": self.provenance,
            "dynamic_axes": self.axes,
            "litert": self.settings.litert,
        }
        settings: dict[str, Any] = {key: value for key, value in known.items() if key in kind.settings}
        if kind.fixed_batch:
            return kind.write(model, call.example_inputs, path, **settings)
        free = self.settings.dynamic_batch
        try:
            file = kind.write(model, call.example_inputs, path, dynamic_batch=free, **settings)
        except CompressionError:
            if not self.axes:
                raise
            settings["dynamic_axes"] = {}
            file = kind.write(model, call.example_inputs, path, dynamic_batch=free, **settings)
            sizes = ", ".join(f"dimension {axis} of {name}" for name, axes in self.axes.items() for axis in axes)
            self._note(
                f"{path.name} takes one size alone of {sizes}, which differs in the data: the network reads it as a "
                f"number."
            )
        if free and file.batch is not None:
            one = call.first(1, model)
            if file.batch != 1 and one is not call:
                file = kind.write(model, one.example_inputs, path, dynamic_batch=False, **settings)
            self._note(
                f"{path.name} takes {file.batch} sample{'s' if file.batch > 1 else ''} a call: the network reads the "
                f"size of its batch as a number, as len(x) and int(x.shape[0]) do."
            )
        if file.left_out:
            self._note(f"{path.name} gives tensors alone: {', '.join(file.left_out)} among the results is left out.")
        for note in kind.write_notes(file):
            self._note(note)
        return file

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def artifact(self, item: str, written: Any) -> dict[str, Any]:
        """What the report says of a written format."""
        kind = FORMATS[item]
        path, *beside = (self.folder / name for name in kind.files)
        return {
            "format": item,
            "file": path.name,
            "bytes": sum(file.stat().st_size for file in (path, *beside)),
            "sha256": sha256(path),
            "breakdown": kind.breakdown(path, written),
            "zipped": zipped(path, *beside),
            "beside": {file.name: sha256(file) for file in beside},
        }
