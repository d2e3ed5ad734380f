"""The phases of all callbacks: checked and announced before training, and those that it did not reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L

from lightning_compress import loggers
from lightning_compress.callbacks.checkpoints.resume_limits import resume_limits
from lightning_compress.callbacks.distillation import KnowledgeDistillation
from lightning_compress.callbacks.pruning import GradualMagnitudePruning
from lightning_compress.callbacks.quantization import QuantizationAwareTraining
from lightning_compress.monitoring import phases


def announce(trainer: L.Trainer, module: L.LightningModule, total: int | None, *, printed: bool) -> None:
    """Check the phases, log the plan, and print it to standard error.

    Args:
        trainer: The Trainer, whose callbacks are asked.
        module: What it trains.
        total: Optimizer steps of the run; ``None`` if unknown.
        printed: Whether to print a table of the phases, and the notes on them.

    Raises:
        CompressionError: The phases do not fit into the run.
    """
    schedule, bits, steps = None, "", {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradualMagnitudePruning) and callback.pruner is not None:
            schedule = callback.pruner.schedule
        elif isinstance(callback, QuantizationAwareTraining):
            settings = callback.settings
            bits = "/".join(str(n or "float") for n in (settings.weight_bits, settings.activation_bits))
            steps["quantization"] = callback.phases
        elif isinstance(callback, KnowledgeDistillation):
            steps["distillation"] = callback.phases
    found = phases.plan(schedule, steps.get("quantization"), steps.get("distillation"), bits=bits)
    phases.check(found, total)
    _log(trainer, found, total)
    if found and printed and trainer.is_global_zero:
        from rich.console import Console

        # Standard output is the program's own: a command may print JSON there.
        console = Console(stderr=True)
        console.print(phases.table(found, total))
        for note in [*phases.notes(schedule, steps.get("quantization")), *resume_limits(trainer, module)]:
            console.print(f"Note: {note}", markup=False)


def unreached(trainer: L.Trainer) -> list[str]:
    """What a fit that ended early, as by ``EarlyStopping``, did not do: a sentence for each target of its callbacks.

    Args:
        trainer: The Trainer, after its fit.
    """
    last, found = trainer.global_step, []
    ended = f"training ended at optimizer step {last}"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradualMagnitudePruning) and callback.pruner is not None:
            schedule = callback.pruner.schedule
            if last < schedule.end:
                found.append(
                    f"Sparsity is {callback.pruner.sparsity():.1%}, not {schedule.final:.1%}: {ended}, before the last "
                    f"mask update at step {schedule.end}. Train longer, or give an earlier 'end'."
                )
        elif isinstance(callback, QuantizationAwareTraining) and callback.phases.get("start", 0) >= last:
            start = callback.phases["start"]
            found.append(
                f"Nothing is quantized: {ended}, and quantization begins at step {start}. Train longer, or give an "
                f"earlier 'start'."
            )
    return found


def _log(trainer: L.Trainer, found: Sequence[phases.Phase], total: int | None) -> None:
    """Log what is going to be done, resolved to optimizer steps and layers."""
    plan: dict[str, Any] = {
        "total_steps": total,
        "phases": [{"name": phase.name, "start": phase.start, "end": phase.end} for phase in found],
    }
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradualMagnitudePruning) and callback.pruner is not None:
            plan["pruning"] = callback.pruner.describe()
        elif isinstance(callback, QuantizationAwareTraining):
            plan["quantization"] = callback.settings.as_dict()
    loggers.log_plan(trainer.loggers, plan)
