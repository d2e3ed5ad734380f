"""Parts that all reports share."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lightning_compress.metrics import functional
from lightning_compress.metrics.layer_table import LayerRow


def environment() -> dict[str, Any]:
    """The software and the processor that gave a report's numbers.

    Example:
        >>> sorted(environment())
        ['cpu', 'lightning', 'onnxruntime', 'platform', 'python', 'threads', 'torch']
    """
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": _version("lightning") or "unknown",
        "onnxruntime": _version("onnxruntime"),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def layers(rows: Sequence[LayerRow], packed: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """The report's list of layers.

    Args:
        rows: Every parameter (``metrics.describe``).
        packed: Parameter's name → bytes in the packed file; estimated from entropy where it is not given.
    """
    packed = packed or {}
    return [
        {
            "name": row.name,
            "type": row.module_type,
            "shape": list(row.shape),
            "numel": row.numel,
            "sparsity_target": row.sparsity_target,
            "sparsity": row.sparsity,
            "weight_bits": row.weight_bits,
            "activation_bits": row.activation_bits,
            "bytes_dense": functional.FLOAT_BYTES * row.numel,
            "bytes_packed": packed.get(row.name, round(functional.row_bytes(row))),
            "macs": row.macs,
            "pattern": row.pattern,
            "dead_channels": row.dead_channels,
        }
        for row in rows
    ]


def phases(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Phases of a run; each ends where the next begins.

    Args:
        history: Points of the monitor, in order: ``step`` (optimizer steps) and ``phase`` of each.

    Returns:
        ``name``, ``start`` and ``end`` (optimizer steps) of each phase.

    Example:
        >>> phases([{"step": 0, "phase": "dense"}, {"step": 40, "phase": "pruning"}, {"step": 90, "phase": "pruning"}])
        [{'name': 'dense', 'start': 0, 'end': 40}, {'name': 'pruning', 'start': 40, 'end': 90}]
    """
    found: list[dict[str, Any]] = []
    for point in history:
        if found:
            found[-1]["end"] = point["step"]
        if not found or found[-1]["name"] != point["phase"]:
            found.append({"name": point["phase"], "start": point["step"], "end": point["step"]})
    return found


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file() and (found := re.search(r"model name\s*:\s*(.+)", information.read_text())):
        return found[1].strip()
    return platform.processor() or platform.machine() or "unknown"
