"""Limits that the numbers of an export must keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lightning_compress.delivery.findings import Findings
from lightning_compress.errors import CompressionError, closest


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
                failed.append(f"max_drop cannot be judged: there is no {self.monitor} of a {form} model.")
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
