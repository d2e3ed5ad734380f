"""The series that a run logs under ``compress/``, and the names of its phases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_compress.metrics import functional
from lightning_compress.metrics.layer_table import LayerRow
from lightning_compress.monitoring import names

if TYPE_CHECKING:
    from lightning_compress.pruning.schedule import SparsitySchedule
    from lightning_compress.quantization import Quantization

MEGABYTE = 1e6
PHASES = {
    "dense": 0,
    "pruning": 1,
    "pruned": 2,
    "quantized": 3,
    "pruning + quantized": 4,
    "pruned + quantized": 5,
}
"""What compression does → the number under which ``compress/phase`` logs it; a run mostly goes from 0 up."""


def series(rows: Sequence[LayerRow], *, target: float = 0.0, extra: int = 0, products: int = 0) -> dict[str, float]:
    """Every number that the monitor logs, from rows alone.

    Args:
        rows: Every parameter of the model.
        target: Sparsity asked for (``Pruner.sparsity_target``).
        extra: Bytes besides them (``functional.extra_bytes``).
        products: Multiply-accumulates between activations (``Macs.products``).

    Returns:
        Key → value. Sizes are in MB of 10^6 bytes; ``compress/bops`` is left out if multiply-accumulates were not
        counted.

    Example:
        >>> rows = [LayerRow("fc.weight", "Linear", (4, 4), numel=16, zeros=0)]
        >>> series(rows)["compress/compression_ratio"]
        1.0
    """
    dense, packed = functional.dense_bytes(rows, extra), functional.packed_bytes(rows, extra)
    found = {
        names.SPARSITY: functional.sparsity(rows),
        names.SPARSITY_TARGET: target,
        names.WEIGHT_BITS: functional.weight_bits(rows),
        names.ACTIVATION_BITS: functional.activation_bits(rows),
        names.DENSE_MB: dense / MEGABYTE,
        names.PACKED_MB: packed / MEGABYTE,
        names.COMPRESSION_RATIO: dense / packed if packed else 1.0,
    }
    operations = functional.bit_operations(rows, products)
    return found if operations is None else {**found, names.BOPS: operations}


def phase(step: int, schedule: SparsitySchedule | None, quantization: Quantization | None) -> str:
    """What compression does at an optimizer step, in the words of ``PHASES``.

    Example:
        >>> phase(0, None, None)
        'dense'
    """
    words = []
    if schedule is not None and schedule.last_update(step) is not None:
        words.append("pruning" if step < schedule.end else "pruned")
    if quantization is not None and quantization.enabled:
        words.append("quantized")
    return " + ".join(words) or "dense"


def history_point(step: int, found: Mapping[str, float], phase: str) -> dict[str, Any]:
    """One measurement as the report's history and its pictures take it.

    Args:
        step: Optimizer steps done.
        found: The series.
        phase: Name of the phase.
    """
    return {
        "step": step,
        "sparsity": found[names.SPARSITY],
        "sparsity_target": found[names.SPARSITY_TARGET],
        "weight_bits": found[names.WEIGHT_BITS],
        "activation_bits": found[names.ACTIVATION_BITS],
        "phase": phase,
    }


def own_metrics(logged: Mapping[str, Any]) -> dict[str, float]:
    """What the user's module logged: finite numbers that are none of ours.

    Args:
        logged: Name → value, a number or a tensor ``[]``.

    Example:
        >>> own_metrics({"val/acc": 0.5, "train/loss": float("nan"), "compress/bits/weight": 8.0})
        {'val/acc': 0.5}
    """
    found = {name: float(value) for name, value in logged.items() if not name.startswith(names.PREFIX)}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def bar_text(found: Mapping[str, float]) -> dict[str, str]:
    """What a progress bar shows: sparsity, and bits of weights and activations.

    Example:
        >>> bits = {"compress/bits/weight": 8.0, "compress/bits/activation": 8.0}
        >>> bar_text({"compress/sparsity/global": 0.8, **bits})
        {'sparsity': '80.0%', 'bits': '8/8'}
    """
    weight, activation = found[names.WEIGHT_BITS], found[names.ACTIVATION_BITS]
    return {
        "sparsity": f"{found[names.SPARSITY]:.1%}",
        "bits": f"{weight:.3g}/{activation:.3g}",
    }
