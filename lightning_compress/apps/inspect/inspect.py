"""What is in a file: any artifact or checkpoint, tensor by tensor, without a model."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from lightning_compress.apps.inspect.readers import checkpoint, is_packed, onnx, packed, safetensors
from lightning_compress.apps.inspect.rows import Inspection, TensorRow
from lightning_compress.errors import CompressionError, DoesNotHold, first_line

__all__ = ["Inspection", "TensorRow", "inspect"]

_ZIPPED_UP_TO = 128_000_000


def inspect(path: Path) -> Inspection:
    """Look into a checkpoint, an artifact, or the directory of an export.

    Args:
        path: A ``.ckpt``/``.pt``/``.pth`` file that loads with ``weights_only``, a safetensors, packed or ONNX file, a
            directory with ``report.json``, or the directory of a run that has one export in it.

    Raises:
        CompressionError: There is nothing of that kind at the path.
        DoesNotHold: It is damaged, or files of an export are not those that its report speaks of.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "state.pt"
        >>> import torch
        >>> torch.save({"weight": torch.eye(4)}, path)
        >>> inspect(path).tensors[0].sparsity
        0.75
    """
    if path.is_dir():
        return _export(path)
    if not path.is_file():
        raise CompressionError.field("inspect", expected="a file, or the directory of an export", got=str(path))
    if path.suffix == ".onnx":
        found = onnx(path)
    elif path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        found = checkpoint(path)
    elif path.suffix in (".safetensors", ".packed"):
        found = packed(path) if is_packed(path) else safetensors(path)
    else:
        raise CompressionError.field(
            "inspect", expected="a .ckpt, .pt, .pth, .safetensors, .packed or .onnx file", got=str(path)
        )
    found.bytes = path.stat().st_size
    if found.bytes <= _ZIPPED_UP_TO:
        found.zipped_bytes = len(zlib.compress(path.read_bytes(), 6))
    return found


def _export(path: Path) -> Inspection:
    """The directory of an export: its report, and each file that is still the one the report speaks of."""
    from lightning_compress.delivery.directory import READY
    from lightning_compress.foundation.checksum import sha256
    from lightning_compress.report import check

    if not (path / "report.json").is_file() and not (path / READY).is_dir():
        path = _export_of_run(path)
    source = path / "report.json"
    if (path / READY).is_dir():
        raise DoesNotHold(
            f"{path}: an export was stopped while it put its files in place; the rest of them is in {READY}. The next "
            f"export puts them there."
        )
    try:
        report = json.loads(source.read_text(encoding="utf-8"))
        check(report)
    except ValueError as error:
        raise DoesNotHold(f"{source}: {first_line(error)}") from error
    found = Inspection(path, "export")
    for artifact in report["artifacts"]:
        file = path / artifact["file"]
        if not file.is_file():
            raise DoesNotHold(f"{file}: is gone, though {source.name} lists it.")
        if sha256(file) != artifact["sha256"]:
            raise DoesNotHold(f"{file}: is not the file that {source.name} speaks of (its checksum differs).")
        if file.suffix in (".onnx", ".packed"):
            found.files[artifact["file"]] = inspect(file)
        found.bytes += artifact["bytes"]
    found.facts = {"name": report["name"], "created": report["created"]}
    for form, result in report["results"].items():
        if result is not None:
            metrics = ", ".join(f"{name} {value:.4f}" for name, value in result["metrics"].items())
            found.facts[form.replace("_", "-")] = (
                f"{result['source']}, {result['bytes']} bytes{', ' * bool(metrics)}{metrics}"
            )
    for item in report["layers"]:
        numel = item["numel"]
        found.tensors.append(
            TensorRow(
                name=item["name"],
                shape=tuple(item["shape"]),
                dtype="float32",
                bits=item["weight_bits"],
                zeros=round(item["sparsity"] * numel),
                pattern=item["pattern"],
                empty_channels=0,
                dense_bytes=item["bytes_dense"],
                stored_bytes=round(item["bytes_packed"]),
                entropy_bytes=None,
            )
        )
    return found


def _export_of_run(path: Path) -> Path:
    """The one export in the directory of a run."""
    found = sorted(report.parent for report in path.glob("*/report.json"))
    if len(found) == 1:
        return found[0]
    exports = ", ".join(map(str, found))
    raise CompressionError.field(
        "inspect",
        expected="the directory of an export, with report.json, or of a run with one export in it",
        got=str(path),
        fix=f"Give one of {exports}." if found else "Give a file.",
    )
