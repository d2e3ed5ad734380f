"""The formats that an export writes, and the names of their files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from lightning_compress.errors import CompressionError, closest, refuse_missing

Format = Literal["onnx", "openvino", "torch_export", "executorch", "litert", "packed", "compressed_tensors"]
"""In the order in which one counts as deployed: what a runtime computes in integers before what is only stored."""
FILES: dict[str, str] = {
    "onnx": "model.onnx",
    "openvino": "model.xml",
    "torch_export": "model.pt2",
    "executorch": "model.pte",
    "litert": "model.tflite",
    "packed": "model.packed",
    "compressed_tensors": "model.safetensors",
}
BESIDE = {"openvino": "model.bin", "compressed_tensors": "config.json"}
"""Second files of formats that have two."""
TRACED = ("onnx", "openvino", "torch_export", "executorch", "litert")
"""Formats that hold a graph, for which the network is traced with the inputs of one call."""
FIXED_BATCH = ("executorch", "litert")
"""Those of them that are written for one sample a call."""
_RUNTIMES = {
    "openvino": ("openvino", "OpenVINO"),
    "executorch": ("executorch", "ExecuTorch"),
    "litert": ("litert_torch", "LiteRT"),
}
"""Formats that need packages, which an extra of the format's name brings: name of the import, and for people."""
DENSE_STATE, DENSE_ONNX = "dense.safetensors", "dense.onnx"
GIVEN = "given"
REPORTS = ("report.json", "report.md", "report.html")


def check_formats(formats: Sequence[str], name: str) -> tuple[str, ...]:
    """Check the formats that are asked for.

    Raises:
        CompressionError: One is unknown, or its runtime is not installed.

    Example:
        >>> check_formats(["onnx"], "formats")
        ('onnx',)
    """
    known = get_args(Format)
    if isinstance(formats, str) or not formats:
        raise CompressionError.field(name, expected=f"a list of {', '.join(known)}", got=formats)
    for item in formats:
        if item not in known:
            raise CompressionError.field(
                name, expected=f"some of {', '.join(known)}", got=item, fix=closest(str(item), known)
            )
    for item, (package, runtime) in _RUNTIMES.items():
        if item in formats:
            refuse_missing(name, package, runtime, item)
    return tuple(dict.fromkeys(formats))


def files_of(formats: Sequence[str]) -> list[str]:
    """Names of the files that formats consist of, the dense one for comparison included.

    Example:
        >>> files_of(["packed", "openvino"])
        ['model.packed', 'model.xml', 'model.bin', 'dense.onnx']
    """
    names = [name for item in formats for name in (FILES[item], BESIDE.get(item)) if name is not None]
    return [*names, DENSE_ONNX] if {"onnx", "openvino"} & set(formats) else names


def deployed_of(formats: Iterable[str]) -> str | None:
    """The format that counts as deployed.

    Example:
        >>> deployed_of(["packed", "onnx"])
        'onnx'
    """
    formats = set(formats)
    return next((item for item in get_args(Format) if item in formats), None)
