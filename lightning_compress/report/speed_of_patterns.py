"""The speed-up that a runtime gets from a pattern of zeros, often none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NONE = "none"
RUNTIMES = ("ONNX Runtime (CPU)", "OpenVINO (CPU)", "ExecuTorch (XNNPACK)", "NVIDIA GPU")
SMALLER = "as a smaller network"
SPARSE_CORES = "TensorRT and torch.sparse, from Ampere on; not measured here"


def speed_from_zeros(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """For each pattern in a report, the speed that each of ``RUNTIMES`` gets out of its zeros.

    Zeros in whole channels are no zeros any more when the network is exported: they are taken out. Sparse tensor cores
    know two of four alone. Of other zeros these runtimes multiply every one; OpenVINO's sparse decompression is for
    processors with AMX and off by itself.

    Example:
        >>> layer = {"pattern": "2:4", "sparsity": 0.5}
        >>> speed_from_zeros({"layers": [layer]})[0][1][:2]
        ['none', 'none']
    """
    patterns = sorted({row["pattern"] for row in report["layers"] if row["sparsity"] > 0} - {"none"})
    return [(pattern, _speeds(pattern)) for pattern in patterns]


def _speeds(pattern: str) -> list[str]:
    if pattern == "channel":
        return [SMALLER] * len(RUNTIMES)
    return [NONE, NONE, NONE, SPARSE_CORES if pattern == "2:4" else NONE]
