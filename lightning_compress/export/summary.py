"""The report of an export, and the limits that its numbers must keep."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Literal

from lightning_compress import report
from lightning_compress.errors import CompressionError, closest
from lightning_compress.export.accounting import accounting
from lightning_compress.export.artifacts import Findings, Result
from lightning_compress.export.formats import deployed_of
from lightning_compress.metrics.layers import LayerRow
from lightning_compress.pruning import Pruner
from lightning_compress.quantization import Quantization


@dataclass(frozen=True)
class Limits:
    """What the deployed model must keep.

    Attributes:
        monitor: The metric that may drop.
        mode: Whether more of it is better (``"max"``) or less (``"min"``).
        max_drop: Largest loss of it from dense to deployed, in its own unit.
        min_agreement: Smallest share of predictions with the same top class as the trained model's.
        field: Name of the owner, for messages.

    Raises:
        CompressionError: A limit is out of its range, or lacks its metric.
    """

    monitor: str | None = None
    mode: Literal["max", "min"] = "max"
    max_drop: float | None = None
    min_agreement: float | None = None
    field: str = "export"

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min"):
            raise CompressionError.field(f"{self.field}.mode", expected="'max' or 'min'", got=self.mode)
        if self.max_drop is not None and self.monitor is None:
            raise CompressionError.field(
                f"{self.field}.monitor",
                expected="the name of a logged metric, since max_drop is given",
                got=None,
                fix="Give monitor='val/acc' or the like.",
            )
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise CompressionError.field(
                f"{self.field}.min_agreement", expected="a share from 0 to 1", got=self.min_agreement
            )

    def refuse_unlogged(self, metrics: Mapping[str, Any]) -> None:
        """Check that an evaluation logs the monitored metric.

        Raises:
            CompressionError: It does not.
        """
        if self.monitor is not None and self.monitor not in metrics:
            raise CompressionError.field(
                f"{self.field}.monitor",
                expected="a metric that the evaluation logs",
                got=self.monitor,
                fix=closest(self.monitor, metrics),
            )

    def failures(self, found: Findings, agreement: float | None) -> list[str]:
        """What does not hold, or cannot be judged, in one sentence each."""
        failed = []
        if self.max_drop is not None and self.monitor is not None:
            dense, deployed = (self._monitored(found, form) for form in ("dense", "deployed"))
            if dense is None or deployed is None:
                form = "dense" if dense is None else "deployed"
                failed.append(f"{self.monitor}, which max_drop looks at, was not logged by the {form} evaluation.")
            elif not (drop := (dense - deployed) * (1 if self.mode == "max" else -1)) <= self.max_drop:
                allowed = f"at most {self.max_drop:.4g} is asked for"
                failed.append(f"{self.monitor} drops by {drop:.4g} from dense to deployed, {allowed}.")
        if self.min_agreement is not None:
            if agreement is None:
                failed.append("min_agreement cannot be judged: the outputs were not recognized as class scores.")
            elif agreement < self.min_agreement:
                failed.append(
                    f"The deployed model agrees with the trained one on {agreement:.2%} of the predictions, "
                    f"at least {self.min_agreement:.2%} is asked for."
                )
        if failed and found.divergence is not None:
            failed.append(f"They differ first in {found.divergence}.")
        return failed

    def _monitored(self, found: Findings, form: str) -> float | None:
        return found.results[form].metrics.get(self.monitor or "") if form in found.results else None


def compose(
    found: Findings,
    *,
    name: str,
    rows: Sequence[LayerRow],
    dense_bytes: int,
    history: Sequence[Mapping[str, Any]],
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
    return {
        "format": report.FORMAT,
        "name": name,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": report.environment(),
        "seed": int(seed) if seed is not None else None,
        "data": dict(data) if data is not None else None,
        "plan": {
            "pruning": None if pruner is None else _plain(pruner.state_dict()["settings"]),
            "quantization": None if quantization is None else _plain(_quantization(quantization)),
            "phases": report.phases(history),
        },
        "results": {
            form: _result(found.results[form], dense_bytes) if form in found.results else None
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
        "bytes": accounting(rows, dense_bytes, found.packed, found.artifacts),
        "layers": report.layers(rows, packed),
        "history": [dict(point) for point in history],
        "stays_float": [] if quantization is None else quantization.unreached,
        "notes": [*found.notes, *(f"Does not hold: {failure}" for failure in failures)],
        "failures": list(failures),
    }


def _result(result: Result, dense_bytes: int) -> dict[str, Any]:
    return {
        "label": result.label,
        "metrics": result.metrics,
        "bytes": result.bytes,
        "compression_ratio": dense_bytes / result.bytes,
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
