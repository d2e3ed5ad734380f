"""Whether a calibrated network needs training: its metric against the dense one's, and the error of both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lightning_compress.errors import CompressionError, closest
from lightning_compress.report import number_text as text


@dataclass(frozen=True)
class Verdict:
    """What calibration alone loses, and what that means.

    Attributes:
        metric: Its name.
        dense: Of the trained network in float32.
        deployed: Of the calibrated file in its runtime.
        loss: How much worse that is, in the metric's own unit; negative where it is better.
        allowed: Most that it may be.
        standard_error: Of one evaluation, by the number of samples; ``None`` for metrics that are no shares.
        samples: How many were evaluated.
    """

    metric: str
    dense: float
    deployed: float
    loss: float
    allowed: float
    standard_error: float | None
    samples: int

    @property
    def measurable(self) -> bool:
        """Whether the loss is more than chance in the choice of samples."""
        return not self.loss <= (self.standard_error or 0.0)

    @property
    def needs_training(self) -> bool:
        """Whether more is lost than is allowed, and measurably."""
        return self.measurable and not self.loss <= self.allowed

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        error = "" if self.standard_error is None else f" (standard error {self._amount(self.standard_error)})"
        lost = f"Calibration alone loses {self._amount(self.loss)} of {self.metric}{error}"
        if not self.measurable:
            return f"{lost}: no measurable difference. QAT is not needed."
        if not self.needs_training:
            return f"{lost}, at most {self._amount(self.allowed)} is allowed: QAT is not needed."
        return f"{lost}, at most {self._amount(self.allowed)} is allowed: train."

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {**asdict(self), "needs_training": self.needs_training, "sentence": self.sentence}

    def _amount(self, value: float) -> str:
        value = value + 0.0 if value else 0.0
        return f"{100 * value:.2f} points" if self.standard_error is not None else f"{value:.4g}"


def judge(
    report: Mapping[str, Any],
    max_drop: tuple[float, bool],
    metric: str | None = None,
    mode: Literal["max", "min"] | None = None,
) -> Verdict:
    """Compare the deployed file's metric with the dense network's, as a report has them.

    The standard error of an accuracy p over n samples is the binomial one, sqrt(p (1 - p) / n), with the mean of both
    for p. Both networks see the same samples, so that chance in their difference is less.

    Args:
        report: Of an export with a dense control, verified.
        max_drop: Most that may be lost, and whether it is a percentage: of a share such as accuracy 1 % is one point,
            of another metric a hundredth of the dense network's value.
        metric: Which; by default the first share, or else the first that the evaluation logs.
        mode: Whether more of it is better; by default of a share more, of others less.

    Raises:
        CompressionError: There is no such metric of both.
    """
    results = report["results"]
    dense, deployed = ((results.get(form) or {}).get("metrics") or {} for form in ("dense", "deployed"))
    names = [name for name in dense if name in deployed]
    name = metric or next((n for n in names if text.is_share(n)), names[0] if names else None)
    if name is None or name not in names:
        raise CompressionError.field(
            "--metric",
            expected="a metric that the evaluation logs for the dense and the deployed network",
            got=name,
            fix=closest(str(name), names) if names else " ".join(report["failures"]) or "Log one in the step.",
        )
    before, after = dense[name], deployed[name]
    share = text.is_share(name) and 0 <= before <= 1
    better = mode or ("max" if text.is_share(name) else "min")
    most, percentage = max_drop
    samples = report["samples"] or 0
    p = (before + after) / 2
    return Verdict(
        metric=name,
        dense=before,
        deployed=after,
        loss=(before - after) * (1 if better == "max" else -1),
        allowed=most * abs(before) if percentage and not share else most,
        standard_error=math.sqrt(max(p * (1 - p), 0.0) / samples) if share and samples else None,
        samples=samples,
    )
