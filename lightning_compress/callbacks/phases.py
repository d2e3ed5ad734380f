"""When the phases of a callback begin: points in time as they were given, and the optimizer steps they become."""

from __future__ import annotations

import math
from collections.abc import Mapping

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from lightning_compress.errors import CompressionError
from lightning_compress.timeline import Run, Time, TimePoint, parse


class PhaseTimes:
    """Points in time by their names.

    Args:
        points: Name of a phase → when it begins, ``None`` for never.
        field: Name of the callback, for messages.

    Attributes:
        times: Name → parsed point, of those that are given.

    Raises:
        CompressionError: A point cannot be read.
    """

    def __init__(self, points: Mapping[str, TimePoint | None], field: str) -> None:
        self.times = {name: parse(at, f"{field}.{name}") for name, at in points.items() if at is not None}
        self._given = dict(points)
        self._field = field

    def add(self, name: str, time: Time) -> None:
        """Take a phase whose point was parsed elsewhere."""
        self.times[name] = time
        self._given[name] = time.value if time.unit == "fraction" else f"{time.value:g} {time.unit}s"

    def steps(self, run: Run) -> dict[str, int]:
        """Name → optimizer step.

        Raises:
            CompressionError: A point needs a length that the run does not have.
        """
        return {name: time.steps(run) for name, time in self.times.items()}

    def refuse_beyond(self, steps: Mapping[str, int], trainer: L.Trainer, run: Run, what: str = "that phase") -> None:
        """Refuse phases that the run would never reach; a trial run reaches none.

        Raises:
            CompressionError: There is one.
        """
        if run.total_steps is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for name, step in steps.items():
            if step >= run.total_steps:
                expected = f"a point before the end of the run ({run.total_steps} optimizer steps)"
                raise self.wrong(name, expected, f"As it stands, {what} would never begin.")

    def refuse_before_start(self, name: str, steps: Mapping[str, int], fix: str = "") -> None:
        """Refuse a phase that begins no later than ``start``.

        Raises:
            CompressionError: It does.
        """
        if steps.get(name, math.inf) <= steps["start"]:
            raise self.wrong(name, f"a point after start (optimizer step {steps['start']})", fix)

    def warn_of_unreached(self, steps: Mapping[str, int], last: int) -> None:
        """Warn of phases that training did not reach; ``last`` is its last optimizer step."""
        for name, step in steps.items():
            if step >= last:
                rank_zero_warn(f"{self._field}: training ended at optimizer step {last}, before {name} at step {step}.")

    def wrong(self, name: str, expected: str, fix: str = "") -> CompressionError:
        """The error for a point that does not fit."""
        return CompressionError.field(f"{self._field}.{name}", expected=expected, got=self._given[name], fix=fix)
