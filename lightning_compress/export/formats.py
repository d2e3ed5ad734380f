"""The formats that an export writes: the one list of them, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_compress.errors import CompressionError, closest, refuse_missing
from lightning_compress.export.compressed_tensors.format import CompressedTensors
from lightning_compress.export.executorch.format import ExecuTorch
from lightning_compress.export.file_format import FileFormat, GraphFormat
from lightning_compress.export.litert.format import LiteRT
from lightning_compress.export.onnx.format import Onnx
from lightning_compress.export.openvino import OpenVino
from lightning_compress.export.packed.format import Packed
from lightning_compress.export.pt2.format import TorchExport

FORMATS: dict[str, FileFormat] = {
    kind.name: kind
    for kind in (Onnx(), OpenVino(), TorchExport(), ExecuTorch(), LiteRT(), Packed(), CompressedTensors())
}
"""In the order in which one counts as deployed: what a runtime computes in integers before what is only stored."""
DENSE_STATE, DENSE_ONNX = "dense.safetensors", "dense.onnx"
GIVEN, AT_START, AT_RESUME = "given", "at start of fit", "at resume, compressed already"
"""Where the dense weights of a comparison are from, as reports name it."""
REPORTS = ("report.json", "report.md", "report.html")


def check_formats(formats: Sequence[str], name: str) -> tuple[str, ...]:
    """Check the formats that are asked for.

    Raises:
        CompressionError: One is unknown, or its runtime is not installed.

    Example:
        >>> check_formats(["onnx"], "formats")
        ('onnx',)
    """
    if isinstance(formats, str) or not formats:
        raise CompressionError.field(name, expected=f"a list of {', '.join(FORMATS)}", got=formats)
    for item in formats:
        if item not in FORMATS:
            raise CompressionError.field(
                name, expected=f"some of {', '.join(FORMATS)}", got=item, fix=closest(str(item), FORMATS)
            )
        if (package := FORMATS[item].package) is not None:
            refuse_missing(name, FORMATS[item].imported or item, package, item)
    return tuple(dict.fromkeys(formats))


def format_of(path: Path) -> FileFormat:
    """The format of a file, by its name or else by the end of it; any other file is a packed one.

    Example:
        >>> format_of(Path("dense.onnx")).name, format_of(Path("model.safetensors")).name
        ('onnx', 'compressed_tensors')
    """
    by_name = next((kind for kind in FORMATS.values() if kind.file == path.name), None)
    graphs = (kind for kind in FORMATS.values() if isinstance(kind, GraphFormat))
    by_end = next((kind for kind in graphs if Path(kind.file).suffix == path.suffix), None)
    return by_name or by_end or FORMATS["packed"]


def traced(formats: Iterable[str]) -> list[str]:
    """Those of the formats that hold a graph, for which the network is traced."""
    return [item for item in formats if isinstance(FORMATS[item], GraphFormat)]


def files_of(formats: Sequence[str]) -> list[str]:
    """Names of the files that formats consist of, the dense one for comparison included.

    Example:
        >>> files_of(["packed", "openvino"])
        ['model.packed', 'model.xml', 'model.bin', 'dense.onnx']
    """
    kinds = [FORMATS[item] for item in formats]
    names = [name for kind in kinds for name in kind.files]
    return [*names, DENSE_ONNX] if any(kind.dense == "onnx" for kind in kinds) else names


def deployed_of(formats: Iterable[str]) -> str | None:
    """The format that counts as deployed.

    Example:
        >>> deployed_of(["packed", "onnx"])
        'onnx'
    """
    formats = set(formats)
    return next((item for item in FORMATS if item in formats), None)
