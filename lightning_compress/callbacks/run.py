"""What a Trainer knows of its run, in the terms of the core."""

from __future__ import annotations

import math

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lightning_compress.errors import CompressionError
from lightning_compress.timeline import Run


def run_length(trainer: L.Trainer) -> Run:
    """The length of a fit in optimizer steps; ``None`` where it is unknown (an endless or iterable loader)."""
    total = trainer.estimated_stepping_batches
    batches = trainer.num_training_batches
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else None
    return Run(total_steps=int(total) if math.isfinite(total) and total >= 0 else None, steps_per_epoch=per_epoch)


def refuse_sharded(trainer: L.Trainer, field: str) -> None:
    """Refuse strategies under which a process does not hold whole weights.

    Raises:
        CompressionError: The strategy is neither a single device nor DDP.
    """
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise CompressionError.field(
            f"{field}: Trainer.strategy",
            expected="a single device or DDP",
            got=type(trainer.strategy).__name__,
            fix="Sharded weights cannot be compressed while they train; use strategy='ddp'.",
        )
