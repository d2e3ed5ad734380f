"""What a choice must keep: limits with their units."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from lightning_compress.apps.compare.sweep import Job
from lightning_compress.errors import CompressionError, closest
from lightning_compress.report import number_text as text

Objective = Literal["bytes", "metric", "latency"]

_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3}
# Metrics are computed in float32: two of them may each be half a unit in the last place off.
_ROUNDING = 2**-23
_NUMBER = r"(\d+\.?\d*|\.\d+)"


def parse_size(given: str, name: str = "--max-size") -> float:
    """Bytes.

    Example:
        >>> parse_size("100KB"), parse_size("1.5 MiB"), parse_size("800")
        (100000.0, 1572864.0, 800.0)
    """
    return _with_unit(given, {**_BYTES, "": 1}, name, "a size such as 100KB or 1.5MiB")


def parse_latency(given: str, name: str = "--max-latency") -> float:
    """Milliseconds; the unit must be given.

    Example:
        >>> parse_latency("2ms"), parse_latency("150us")
        (2.0, 0.15)
    """
    return _with_unit(given, _MILLISECONDS, name, "a time such as 2ms or 150us")


def parse_drop(given: str, name: str = "--max-drop") -> tuple[float, bool]:
    """A number, and whether it was a percentage.

    Example:
        >>> parse_drop("1%"), parse_drop("0.02")
        ((0.01, True), (0.02, False))
    """
    found = re.fullmatch(rf"{_NUMBER}\s*(%?)", given.strip())
    if found is None:
        raise CompressionError.field(name, expected="a loss such as 1% or 0.01", got=given)
    return (float(found[1]) / 100, True) if found[2] else (float(found[1]), False)


def _with_unit(given: str, units: dict[str, float] | dict[str, int], name: str, expected: str) -> float:
    found = re.fullmatch(rf"{_NUMBER}\s*([a-zµμ]*)", given.strip().lower())
    if found is None:
        raise CompressionError.field(name, expected=expected, got=given)
    if found[2] not in units:
        fix = closest(found[2], units) if found[2] else "Give a unit."
        raise CompressionError.field(name, expected=expected, got=given, fix=fix)
    return float(found[1]) * units[found[2]]


@dataclass(frozen=True)
class Violation:
    """A limit that a job does not keep.

    Attributes:
        limit: ``"drop"``, ``"size"``, ``"latency"``, ``"flash"`` or ``"ram"``.
        text: What the job has instead.
        excess: By how much, as a share of the limit; infinite if it is not known.
    """

    limit: str
    text: str
    excess: float


@dataclass(frozen=True)
class Limits:
    """What the chosen job must keep, and what it should be best at.

    Attributes:
        metric: Name of the metric that may drop.
        mode: Whether more of it is better (``"max"``) or less.
        max_drop: Largest loss against the job's own dense control. For a share such as accuracy 0.01 is one
            percentage point.
        relative: Whether ``max_drop`` is a share of the control's value; for metrics that are no shares themselves.
        max_size: Bytes.
        max_latency: Milliseconds, median.
        max_flash: Bytes of the file for microcontrollers.
        max_ram: Bytes of RAM that it needs there.
        objective: What to be best at.
        assumed: Whether nothing was asked for, so that ``max_drop`` is a default.
    """

    metric: str
    mode: Literal["max", "min"] = "max"
    max_drop: float | None = None
    relative: bool = False
    max_size: float | None = None
    max_latency: float | None = None
    max_flash: float | None = None
    max_ram: float | None = None
    objective: Objective = "bytes"
    assumed: bool = False

    @classmethod
    def of(
        cls,
        metric: str,
        *,
        mode: Literal["max", "min"] | None = None,
        max_drop: tuple[float, bool] | None = None,
        max_size: float | None = None,
        max_latency: float | None = None,
        max_flash: float | None = None,
        max_ram: float | None = None,
        objective: Objective | None = None,
    ) -> Limits:
        """Fill in what was left open.

        The objective is the smallest file; where only size, latency or memory is bounded, the best metric. With no
        limit and no objective a loss of 1 % is allowed.

        Example:
            >>> Limits.of("test/acc").max_drop, Limits.of("test/acc", max_size=1e5).objective
            (0.01, 'metric')
        """
        share = text.is_share(metric)
        costs = (max_size, max_latency, max_flash, max_ram)
        assumed = max_drop is None and objective is None and all(most is None for most in costs)
        if assumed:
            max_drop = (0.01, True)
        if objective is None:
            objective = "metric" if max_drop is None else "bytes"
        return cls(
            metric=metric,
            mode=mode or ("max" if share else "min"),
            max_drop=None if max_drop is None else max_drop[0],
            relative=max_drop is not None and max_drop[1] and not share,
            max_size=max_size,
            max_latency=max_latency,
            max_flash=max_flash,
            max_ram=max_ram,
            objective=objective,
            assumed=assumed,
        )

    def violations(self, job: Job) -> list[Violation]:
        """Limits that a job does not keep, or that cannot be judged."""
        found = []
        if self.max_drop is not None:
            drop, allowed = job.drop(self.metric, mode=self.mode), self.allowed_drop(job)
            if drop is None or allowed is None:
                found.append(Violation("drop", f"it has no dense control with {self.metric}", float("inf")))
            elif drop > allowed + _ROUNDING * abs(job.dense_metrics[self.metric]):
                excess = (drop - allowed) / allowed if allowed else float("inf")
                found.append(Violation("drop", f"it loses {self.loss(drop)}", excess))
        for limit, value, most, shown in (
            ("size", job.bytes, self.max_size, text.size(job.bytes)),
            ("latency", job.latency_ms, self.max_latency, text.milliseconds(job.latency_ms)),
            ("flash", job.flash, self.max_flash, f"{text.size(job.flash)} of flash"),
            ("ram", job.ram, self.max_ram, f"{text.size(job.ram)} of RAM"),
        ):
            if most is None:
                continue
            if value is None:
                found.append(Violation(limit, f"its {limit} was not measured", float("inf")))
            elif value > most:
                found.append(Violation(limit, f"it has {shown}", (value - most) / most if most else float("inf")))
        return found

    def allowed_drop(self, job: Job) -> float | None:
        """Largest loss for one job, in the metric's own unit."""
        if self.max_drop is None or self.metric not in job.dense_metrics:
            return None
        return self.max_drop * abs(job.dense_metrics[self.metric]) if self.relative else self.max_drop

    @property
    def worse(self) -> str:
        """On which side of the dense value a worse one lies."""
        return "below" if self.mode == "max" else "above"

    @property
    def better(self) -> str:
        """On which side of the dense value a better one lies."""
        return "above" if self.mode == "max" else "below"

    def loss(self, drop: float) -> str:
        """A loss as people read it."""
        return f"{100 * drop:.2f} points" if text.is_share(self.metric) else f"{drop:.4g}"

    def described(self) -> list[str]:
        """The limits, in a few words each."""
        found = []
        if self.max_drop is not None:
            most = text.percent(self.max_drop, 2) + " of the dense value" if self.relative else self.loss(self.max_drop)
            found.append(
                f"{self.metric} at most {most} {self.worse} dense" + (" (the default)" if self.assumed else "")
            )
        if self.max_size is not None:
            found.append(f"at most {text.size(self.max_size)}")
        if self.max_latency is not None:
            found.append(f"at most {self.max_latency:g} ms")
        if self.max_flash is not None:
            found.append(f"at most {text.size(self.max_flash)} of flash")
        if self.max_ram is not None:
            found.append(f"at most {text.size(self.max_ram)} of RAM")
        return found
