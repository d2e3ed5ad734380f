"""Writing the files of an export, and what the report says of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from lightning_compress.delivery.network_call import Entry
from lightning_compress.delivery.size_accounting import zipped
from lightning_compress.export.compressed_tensors import save_compressed_tensors
from lightning_compress.export.executorch.write import to_executorch
from lightning_compress.export.formats import BESIDE, FILES
from lightning_compress.export.onnx.write import to_onnx
from lightning_compress.export.openvino import to_openvino
from lightning_compress.export.packed.save_load import PackedFile, save_packed
from lightning_compress.export.pt2.write import to_torch_export
from lightning_compress.export.signatures import input_names
from lightning_compress.foundation.checksum import sha256


@dataclass(frozen=True)
class Files:
    """Writes a model to a directory, each format under its own file name.

    Attributes:
        folder: The directory.
        entry: The call of the network that is traced.
        provenance: What ONNX files say of where they come from.
    """

    folder: Path
    entry: Entry
    provenance: Mapping[str, str] = field(default_factory=dict)

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
            to_openvino(model, self.entry.example_inputs, path)
        elif item == "torch_export":
            to_torch_export(model, self.entry.example_inputs, path)
        elif item == "executorch":
            to_executorch(model, self.entry.example_inputs, path)
        return None

    def write_onnx(self, model: nn.Module, name: str) -> None:
        """Write an ONNX file under a name of its own."""
        to_onnx(
            model,
            self.entry.example_inputs,
            self.folder / name,
            input_names=list(input_names(model.forward, self.entry.args, self.entry.kwargs)),
            metadata=self.provenance,
        )

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
