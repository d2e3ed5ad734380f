"""How sparsity rises over training: a pure function of the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from lightning_compress.errors import CompressionError, closest

ScheduleName = Literal["cubic", "linear", "cosine", "exponential", "constant"]
Curve = Callable[[float], float]

_EARLY_DECAY = 5.0


# Functions rather than lambdas, so that whatever holds one can be pickled.
def _cubic(t: float) -> float:
    """Zhu & Gupta 2017, eq. 1: s(t) = s_f + (s_i - s_f)(1 - t)^3."""
    return 1 - (1 - t) ** 3


def _linear(t: float) -> float:
    return t


def _cosine(t: float) -> float:
    return (1 - math.cos(math.pi * t)) / 2


def _exponential(t: float) -> float:
    """Early decay: the share still to prune decays exponentially, so most goes early."""
    return (1 - math.exp(-_EARLY_DECAY * t)) / (1 - math.exp(-_EARLY_DECAY))


def _constant(t: float) -> float:
    return 1.0


CURVES: dict[str, Curve] = {
    "cubic": _cubic,
    "linear": _linear,
    "cosine": _cosine,
    "exponential": _exponential,
    "constant": _constant,
}


def curve(schedule: ScheduleName | Curve, field: str = "schedule") -> Curve:
    """Look up a schedule's curve t in [0, 1] → share of the way from initial to final sparsity.

    Raises:
        CompressionError: The name is unknown, or a callable leaves [0, 1] or does not end at 1.
    """
    if isinstance(schedule, str):
        if schedule not in CURVES:
            raise CompressionError.field(
                field,
                expected=f"one of {', '.join(get_args(ScheduleName))} or a callable [0, 1] → [0, 1]",
                got=schedule,
                fix=closest(schedule, CURVES),
            )
        return CURVES[schedule]
    if not callable(schedule):
        raise CompressionError.field(field, expected="a schedule's name or a callable", got=schedule)
    values = [float(schedule(i / 16)) for i in range(17)]
    if not all(0 <= v <= 1 for v in values):
        raise CompressionError.field(field, expected="a callable with values in [0, 1]", got=values)
    if not math.isclose(values[-1], 1.0):
        raise CompressionError.field(
            field,
            expected="a callable with value 1 at t = 1",
            got=values[-1],
            fix="The end is final_sparsity.",
        )
    return schedule


@dataclass(frozen=True)
class SparsitySchedule:
    """Target sparsity at each optimizer step.

    Attributes:
        initial: Sparsity at ``start``.
        final: Sparsity from ``end`` on.
        start: Optimizer step of the first update.
        end: Optimizer step of the last update.
        every: Optimizer steps between updates.
        curve: Share of the way from initial to final at t in [0, 1].
    """

    initial: float
    final: float
    start: int
    end: int
    every: int
    curve: Curve

    def at(self, step: int) -> float:
        """Sparsity in force after the update that is due at or before ``step``.

        Example:
            >>> SparsitySchedule(0.0, 0.8, start=0, end=100, every=10, curve=CURVES["linear"]).at(55)
            0.4
        """
        update = self.last_update(step)
        if update is None:
            return 0.0
        if update >= self.end:
            return self.final
        t = (update - self.start) / (self.end - self.start)
        return self.initial + (self.final - self.initial) * self.curve(t)

    def last_update(self, step: int) -> int | None:
        """The newest update step that is not after ``step``; ``None`` before the first."""
        if step < self.start:
            return None
        if step >= self.end:
            return self.end
        return self.start + (step - self.start) // self.every * self.every

    def updates(self) -> Iterator[int]:
        """Every update step, in order; the last is ``end``."""
        yield from range(self.start, self.end, self.every)
        yield self.end
