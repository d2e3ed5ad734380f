"""Bytes of a model at each stage: dense, quantized, packed, on disk and zipped."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_compress.export.packed.save_load import PackedFile
from lightning_compress.metrics.functional import FLOAT_BYTES
from lightning_compress.metrics.layer_table import LayerRow

_BLOCK = 1 << 20


def accounting(
    rows: Sequence[LayerRow], dense_bytes: int, packed: PackedFile | None, artifacts: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The report's ``bytes``.

    Args:
        rows: Every parameter.
        dense_bytes: Bytes of all parameters and buffers in float32.
        packed: The packed file, if one was written.
        artifacts: The report's, each with ``bytes`` and ``zipped``.

    Returns:
        ``dense``; ``quantized``, in which every weight takes its width and all else is as in ``dense``; ``packed`` with
        ``integers`` (what weights and positions take of it) and ``entropy_bound`` (the fewest bytes for the same
        integers, zeros among them, were they independent within each tensor), ``None`` without such a file; and
        ``files``: name → ``on_disk`` and ``zipped`` (the whole file by zlib, level 9).
    """
    saved = sum(row.numel * (8 * FLOAT_BYTES - row.weight_bits) / 8 for row in rows)
    coded = None if packed is None else packed.breakdown["positions"] + packed.breakdown["values"]
    return {
        "dense": dense_bytes,
        "quantized": math.ceil(dense_bytes - saved),
        "packed": None if packed is None else packed.bytes,
        "integers": coded,
        "entropy_bound": None if packed is None else round(packed.entropy_bound, 1),
        "files": {item["file"]: {"on_disk": item["bytes"], "zipped": item["zipped"]} for item in artifacts},
    }


def zipped(*paths: Path) -> int:
    """Bytes of files by zlib at level 9, each a stream of its own.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "zeros"
        >>> _ = path.write_bytes(bytes(100_000))
        >>> zipped(path) < 200
        True
    """
    total = 0
    for path in paths:
        stream = zlib.compressobj(9)
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                total += len(stream.compress(block))
        total += len(stream.flush())
    return total
