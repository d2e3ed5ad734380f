"""The phases of a run: what compression does between which optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightning_compress.errors import CompressionError
from lightning_compress.timeline import step_text

if TYPE_CHECKING:
    from rich.table import Table

    from lightning_compress.pruning import Pruner
    from lightning_compress.pruning.schedule import SparsitySchedule
    from lightning_compress.quantization import Quantization

_WIDTH = 24


@dataclass(frozen=True)
class Phase:
    """Something that compression does for a while.

    Attributes:
        name: In words.
        start: First optimizer step.
        end: Optimizer step at which it is over; ``None`` for the end of the run.
    """

    name: str
    start: int
    end: int | None = None


def plan(
    schedule: SparsitySchedule | None = None,
    quantization: Mapping[str, int] | None = None,
    distillation: Mapping[str, int] | None = None,
    *,
    bits: str = "",
) -> list[Phase]:
    """The phases of a run, in the order in which they begin.

    Args:
        schedule: When weights are pruned.
        quantization: ``start`` and, where given, ``freeze_range``, ``freeze_batchnorm`` and changes of bits under
            names of their own, in optimizer steps.
        distillation: ``start`` and, where given, ``end``.
        bits: Bits of weights and activations, in words.

    Example:
        >>> [phase.name for phase in plan(quantization={"start": 5, "freeze_range": 9}, bits="8/8")]
        ['quantization 8/8', 'ranges frozen']
    """
    found = []
    if schedule is not None:
        if schedule.end > schedule.start:
            sparsity = f"{schedule.initial:.4g} to {schedule.final:.4g}"
            found.append(Phase(f"pruning {sparsity}", schedule.start, schedule.end))
        found.append(Phase(f"sparsity {schedule.final:.4g}" if schedule.final else "zeros kept", schedule.end))
    if quantization is not None:
        names = {"start": f"quantization {bits}", "freeze_range": "ranges frozen", "freeze_batchnorm": "norms frozen"}
        found += [Phase(names.get(name, name).strip(), step) for name, step in quantization.items()]
    if distillation is not None:
        found.append(Phase("distillation", distillation["start"], distillation.get("end")))
    return sorted(found, key=lambda phase: phase.start)


def check(phases: Sequence[Phase], total: int | None) -> None:
    """Refuse a phase that never starts or that ends after the run.

    Raises:
        CompressionError: There is one.

    Example:
        >>> check([Phase("distillation", 10, 20)], total=20)
    """
    for phase in phases:
        if total is None:
            return
        if phase.start > total or (phase.end or 0) > total:
            late = phase.start if phase.start > total else phase.end
            raise CompressionError.field(
                f"phase {phase.name!r}",
                expected=f"{'a start' if phase.start > total else 'an end'} within the run's {total} optimizer steps",
                got=late,
                fix="Train longer, or move it forward.",
            )


def notes(schedule: SparsitySchedule | None, quantization: Mapping[str, int] | None) -> list[str]:
    """What is allowed and loses accuracy, one sentence each.

    Quantization may start before pruning ends: observed ranges follow the weights. Frozen ones do not.

    Example:
        >>> notes(None, {"start": 0})
        []
    """
    frozen = (quantization or {}).get("freeze_range")
    if schedule is None or frozen is None or frozen >= schedule.end:
        return []
    return [
        f"Ranges are frozen at step {frozen}, before pruning ends at {schedule.end}, and fit weights that change "
        "later. Freeze them after the last mask update."
    ]


def table(phases: Sequence[Phase], total: int | None) -> Table:
    """The plan as a table to print, with a bar over the run where its length is known."""
    from rich.table import Table

    drawn = Table("Phase", "From step", "To step", title="Compression", title_justify="left")
    if total:
        drawn.add_column(f"of {total} steps")
    for phase in phases:
        end = "end" if phase.end is None else step_text(phase.end)
        drawn.add_row(phase.name, step_text(phase.start), end, *([bar(phase, total)] if total else []))
    return drawn


def bar(phase: Phase, total: int) -> str:
    """A phase's place in the run.

    Example:
        >>> bar(Phase("pruning", 10, 30), total=40)
        '······━━━━━━━━━━━━······'
    """
    end = total if phase.end is None else phase.end
    first, last = (round(min(step, total) / total * _WIDTH) for step in (phase.start, end))
    first = min(first, _WIDTH - 1)
    return "".join("━" if first <= place < max(last, first + 1) else "·" for place in range(_WIDTH))


def ready(pruner: Pruner | None, quantization: Quantization | None) -> bool:
    """Whether target sparsity and bits are live: the last mask update is done, and all quantizers act.

    Example:
        >>> ready(None, None)
        True
    """
    if pruner is not None and (pruner.last_update is None or pruner.last_update < pruner.schedule.end):
        return False
    if quantization is None:
        return True
    found = quantization.activations.values()
    # Activations in a branch that no batch took have no range, and never will.
    measured = not found or any(quantizer.observed for quantizer in found)
    return quantization.enabled and quantization.settled and not quantization.needs_recording and measured
