"""The report of an export, and the limits that its numbers must keep."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import lightning as L

from lightning_compress import report
from lightning_compress.delivery.evaluation import duplicate
from lightning_compress.delivery.findings import Findings, Result
from lightning_compress.delivery.network_call import Entry
from lightning_compress.delivery.size_accounting import accounting
from lightning_compress.errors import reason
from lightning_compress.export.formats import deployed_of
from lightning_compress.export.signatures import called_through
from lightning_compress.metrics.functional import dense_bytes, extra_bytes
from lightning_compress.metrics.layer_table import LayerRow, describe
from lightning_compress.pruning import Pruner
from lightning_compress.quantization import Quantization


def compose(
    found: Findings,
    *,
    name: str,
    rows: Sequence[LayerRow],
    float_bytes: int,
    history: Sequence[Mapping[str, Any]] = (),
    evaluations: Sequence[Mapping[str, Any]] = (),
    pruner: Pruner | None,
    quantization: Quantization | None,
    data: Mapping[str, Any] | None,
    failures: Sequence[str] = (),
) -> dict[str, Any]:
    """Put everything into the form of ``report.json``.

    Args:
        found: What the export found.
        name: Title.
        rows: Every parameter, as it was exported.
        dense_bytes: Bytes of the dense float32 model.
        history: The monitor's, empty without one.
        evaluations: Likewise.
        pruner: What pruned.
        quantization: What quantized.
        data: Where the data came from and how it was split.
        failures: Limits that do not hold.
    """
    packed = {} if found.packed is None else {row.name: row.bytes for row in found.packed.tensors}
    form = deployed_of(found.comparisons)
    deployed = None if form is None else found.comparisons[form]
    timings = {form: result.timing for form, result in found.results.items() if result.timing is not None}
    seed = os.environ.get("PL_GLOBAL_SEED")
    whole: dict[str, Any] = {
        "format": report.FORMAT,
        "name": name,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": report.environment(),
        "seed": int(seed) if seed is not None else None,
        "data": dict(data) if data is not None else None,
        "plan": {
            "pruning": None if pruner is None else _plain(pruner.describe()),
            "quantization": None if quantization is None else _plain(_quantization(quantization)),
            "phases": report.phases(history),
        },
        "results": {
            form: _result(found.results[form], float_bytes) if form in found.results else None
            for form in ("dense", "fake_quantized", "deployed")
        },
        "agreement": None if deployed is None else deployed.agreement,
        "max_abs_difference": None if deployed is None else deployed.max_abs,
        "mean_abs_difference": None if deployed is None else deployed.mean_abs,
        "samples": None if deployed is None else deployed.samples,
        "divergence": None if found.divergence is None else found.divergence.as_dict(),
        "latency": {
            "ratio": None
            if found.ratio is None
            else {"median": found.ratio.median, "low": found.ratio.low, "high": found.ratio.high},
            **{form: timing.as_dict() for form, timing in timings.items()},
        },
        "artifacts": found.artifacts,
        "bytes": accounting(rows, float_bytes, found.packed, found.artifacts),
        "layers": report.layers(rows, packed),
        "history": [dict(point) for point in history],
        "evaluations": [dict(point) for point in evaluations],
        "integer_share": None if found.integers is None else found.integers.share,
        "microcontroller": None if found.microcontroller is None else found.microcontroller.as_dict(),
        "stays_float": [
            *([] if quantization is None else quantization.unreached),
            *([] if found.integers is None else found.integers.lines()),
        ],
        "notes": [*found.notes, *(f"Does not hold: {failure}" for failure in failures)],
    }
    return {**whole, "failures": [*report.ruin(whole), *found.failures, *failures]}


def described(
    module: L.LightningModule, entry: Entry, pruner: Pruner | None, notes: list[str]
) -> tuple[list[LayerRow], int]:
    """Every parameter of a module, and the bytes of all parameters and buffers in float32.

    Args:
        module: The module; it is not changed.
        entry: The call by which multiply-adds are counted.
        pruner: What pruned.
        notes: Gets the reason where they cannot be counted.
    """
    copied = called_through(duplicate(module), entry.name)
    if not entry.known:
        rows = describe(copied, pruner=pruner)
        return rows, dense_bytes(rows, extra_bytes(copied))
    try:
        rows = describe(copied, pruner=pruner, example_inputs=entry.first(1, copied).example_inputs)
    except Exception as error:  # Of any kind: the network is the user's.
        notes.append(f"Multiply-adds were not counted: {reason(error)}")
        rows = describe(copied, pruner=pruner)
    return rows, dense_bytes(rows, extra_bytes(copied))


def _result(result: Result, float_bytes: int) -> dict[str, Any]:
    return {
        "label": result.label,
        "metrics": result.metrics,
        "bytes": result.bytes,
        "compression_ratio": float_bytes / result.bytes,
        "latency_ms": None if result.timing is None else result.timing.as_dict(),
        "runtime": result.runtime,
        "source": result.source,
    }


def _quantization(quantization: Quantization) -> dict[str, Any]:
    """Its settings, with the bits that are live: those that fell on the way are in ``phases``."""
    bits = {"weight_bits": quantization.weight_bits, "activation_bits": quantization.activation_bits}
    return {**quantization.settings.as_dict(), **bits}


def _plain(value: Any) -> Any:
    """Settings as JSON types; what JSON cannot hold becomes text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
