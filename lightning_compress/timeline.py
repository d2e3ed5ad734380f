"""Points in time of a training run, all resolved to optimizer steps.

An ``int`` counts optimizer steps, a ``float`` in [0, 1] is a fraction of the run, and a string carries its
unit: ``"500ba"`` optimizer steps, ``"3ep"`` epochs, ``"0.5dur"`` a fraction.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from lightning_compress.errors import CompressionError

TimePoint = int | float | str

OPEN_EPOCH = 2**40
"""Optimizer steps of an epoch whose length is not known yet: later than any real step."""

_GRAMMAR = "an int (optimizer steps), a float in [0, 1] (fraction of the run), or '500ba', '3ep', '0.5dur'"
_UNITS: dict[str, Literal["step", "epoch", "fraction"]] = {"ba": "step", "ep": "epoch", "dur": "fraction"}


@dataclass(frozen=True)
class Run:
    """How long a run is.

    Attributes:
        total_steps: Optimizer steps in the whole run; ``None`` when unknown.
        steps_per_epoch: Optimizer steps in one epoch; ``None`` when unknown.
        why: Why one of them is unknown, for messages.
        epochs: Epochs in the whole run, where ``total_steps`` is unknown; ``None`` when unknown, too.
        open_epoch: Whether the first epoch shows how long one is: its loader has no length. Until then it counts as
            endless, ``OPEN_EPOCH`` steps long.
    """

    total_steps: int | None = None
    steps_per_epoch: int | None = None
    why: str = ""
    epochs: int | None = None
    open_epoch: bool = False


@dataclass(frozen=True)
class Time:
    """A parsed time point: a value and its unit."""

    value: float
    unit: Literal["step", "epoch", "fraction"]
    field: str

    def steps(self, run: Run) -> int:
        """Resolve to optimizer steps, rounding half up.

        Raises:
            CompressionError: The unit needs a length that the run does not have, or has only after this point.
        """
        epochs = self._open_epochs(run)
        if epochs is not None and 0 < epochs < 1:
            raise CompressionError.field(
                self.field,
                expected="a point that is no part of the first epoch: its loader has no length, so that the steps of "
                "an epoch are counted in the first one",
                got=self._written(run),
                fix="Give '0ep', '1ep' or later, or optimizer steps, such as 1000 or '1000ba'.",
            )
        return self.length(run)

    def length(self, run: Run) -> int:
        """The same for a length of time, such as the one between two updates, which may be a part of an epoch.

        Raises:
            CompressionError: The unit needs a length that the run does not have.
        """
        if self.unit == "step":
            return int(self.value)
        epochs = self._open_epochs(run)
        if epochs is not None:
            return math.floor(epochs * OPEN_EPOCH + 0.5)
        length = run.total_steps if self.unit == "fraction" else run.steps_per_epoch
        if length is None:
            what = "the whole run" if self.unit == "fraction" else "an epoch"
            raise CompressionError.field(
                self.field,
                expected="a point in time that this run can place",
                got=self.value,
                fix=f"The number of optimizer steps in {what} is unknown here{': ' + run.why if run.why else ''}; give "
                f"optimizer steps, such as 1000 or '1000ba', or set a finite max_steps/max_epochs on the Trainer.",
            )
        return math.floor(self.value * length + 0.5)

    def _open_epochs(self, run: Run) -> float | None:
        """The point in epochs of unknown length; ``None`` where steps are known."""
        if not run.open_epoch or self.unit == "step":
            return None
        if self.unit == "epoch":
            return self.value
        return None if run.total_steps is not None or run.epochs is None else self.value * run.epochs

    def _written(self, run: Run) -> str:
        return f"{self.value:g}ep" if self.unit == "epoch" else f"{self.value:g} of {run.epochs} epochs"


def step_text(step: int) -> str:
    """An optimizer step for people, in epochs where they are not counted yet.

    Example:
        >>> step_text(300), step_text(3 * OPEN_EPOCH)
        ('300', 'epoch 3')
    """
    return f"epoch {step / OPEN_EPOCH:g}" if step >= OPEN_EPOCH // 1000 else str(step)


def parse(point: TimePoint, field: str) -> Time:
    """Parse a time point.

    Args:
        point: What the user wrote.
        field: Full name of the setting, for messages.

    Raises:
        CompressionError: It is not a point in time.

    Example:
        >>> parse("3ep", "start").steps(Run(total_steps=100, steps_per_epoch=10))
        30
    """
    if isinstance(point, bool) or not isinstance(point, int | float | str):
        raise CompressionError.field(field, expected=_GRAMMAR, got=point)
    if isinstance(point, int):
        time = Time(point, "step", field)
    elif isinstance(point, float):
        time = Time(point, "fraction", field)
    else:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ba|ep|dur)", point.strip())
        if match is None:
            raise CompressionError.field(field, expected=_GRAMMAR, got=point)
        time = Time(float(match[1]), _UNITS[match[2]], field)
    if not math.isfinite(time.value) or time.value < 0 or (time.unit == "fraction" and time.value > 1):
        fix = f"Write {int(time.value)} for optimizer steps." if time.value > 1 and time.value < 1e15 else ""
        raise CompressionError.field(field, expected=_GRAMMAR, got=point, fix=fix)
    if time.unit == "step" and time.value != int(time.value):
        raise CompressionError.field(field, expected="a whole number of optimizer steps", got=point)
    return time
