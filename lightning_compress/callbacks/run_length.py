"""The length of a Trainer's run in optimizer steps, and the strategies that are supported."""

from __future__ import annotations

import math

import lightning as L
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)

from lightning_compress.errors import CompressionError
from lightning_compress.lightning_packages import is_instance
from lightning_compress.timeline import Run


def run_length(trainer: L.Trainer, before: Callback | None = None, *, epoch_steps: int | None = None) -> Run:
    """The length of a fit in optimizer steps; ``None`` where it is unknown (an endless or iterable loader).

    Lightning's own estimate counts batches: it takes the accumulation of the moment for that of all epochs, one step a
    batch for any number of optimizers, and the epoch in which batch norm is measured for one of training. Where that is
    wrong, the length is computed here or is unknown.

    Args:
        trainer: The Trainer, while it fits.
        epoch_steps: Optimizer steps of an epoch, where one of a loader without length has been counted.
        before: Who asks in ``on_fit_start``, which callbacks behind it have not come to; ``None`` once all have.
    """
    loop, epochs = trainer.fit_loop, trainer.fit_loop.max_epochs
    loop.max_epochs = None if epochs is None else epochs - _measuring_epochs(trainer, before)
    try:
        run = _length(trainer)
    finally:
        loop.max_epochs = epochs
        # A loader gets its state back while Lightning loads the data, if the loops were restored by then. Where the
        # length was asked for earlier (here, or in configure_optimizers), the data has to be loaded once more.
        if trainer.ckpt_path is not None and not trainer.fit_loop.restarting:
            _forget_data(trainer)
    if not run.open_epoch or epoch_steps is None:
        return run
    total = run.total_steps if run.epochs is None else run.epochs * epoch_steps
    return Run(total_steps=total, steps_per_epoch=epoch_steps)


class EpochCount:
    """Counts the optimizer steps of the first epoch of a loader that has no length.

    Attributes:
        steps: How many; ``None`` until it has ended, and where the loader has a length.
    """

    def __init__(self) -> None:
        self.steps: int | None = None
        self._open = False

    def begin(self, trainer: L.Trainer, before: Callback) -> Run:
        """The length of a fit that begins, as far as it is known; ``before`` as in ``run_length``."""
        run = run_length(trainer, before)
        self._open = run.open_epoch
        return run_length(trainer, before, epoch_steps=self.steps) if self._open and self.steps is not None else run

    def end_epoch(self, trainer: L.Trainer) -> Run | None:
        """The length of the fit at the end of the epoch that shows it; ``None`` after any other epoch."""
        if not self._open or self.steps is not None:
            return None
        self.steps = trainer.global_step
        return run_length(trainer, epoch_steps=self.steps)


def measures_batchnorm(trainer: L.Trainer) -> bool:
    """Whether this epoch trains nothing: averaged weights are in place, whose batch norm is measured."""
    return trainer.fit_loop._skip_backward


def _measuring_epochs(trainer: L.Trainer, before: Callback | None) -> int:
    """How many such epochs ``max_epochs`` holds by now."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    begun = callbacks if before is None else callbacks[: callbacks.index(before)]
    return sum(
        is_instance(callback, StochasticWeightAveraging)
        and trainer.max_epochs != -1
        and callback.pl_module_contains_batch_norm(trainer.lightning_module)
        for callback in begun
    )


def _length(trainer: L.Trainer) -> Run:
    total = trainer.estimated_stepping_batches
    if trainer.train_dataloader is None:
        # The estimate loads no data where max_steps alone ends the run; the length of an epoch needs it.
        trainer.fit_loop.setup_data()
    batches = trainer.num_training_batches
    module = trainer.lightning_module
    if not module.automatic_optimization and len(trainer.optimizers) > 1:
        # Each of their steps counts, and only the training step knows how many there are in a batch.
        alone = trainer.max_epochs == -1 and trainer.max_steps != -1
        return Run(
            total_steps=trainer.max_steps if alone else None,
            why=f"{type(module).__name__} steps {len(trainer.optimizers)} optimizers by hand, and each step counts",
        )
    if not math.isfinite(batches) or batches == 0:
        whole = int(total) if math.isfinite(total) and total > 0 else None
        epochs = trainer.max_epochs if whole is None and trainer.max_epochs not in (None, -1) else None
        return Run(total_steps=whole, epochs=epochs, open_epoch=True, why="its loader has no length")
    schedulers = [
        callback
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if is_instance(callback, GradientAccumulationScheduler) and callback.going_to_accumulate_grad_batches()
    ]
    if not schedulers:
        per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
        return Run(total_steps=int(total) if math.isfinite(total) and total > 0 else None, steps_per_epoch=per_epoch)
    epochs = trainer.max_epochs or 0
    steps = [math.ceil(batches / schedulers[0].get_accumulate_grad_batches(epoch)) for epoch in range(max(epochs, 0))]
    ends = [end for end in (sum(steps), trainer.max_steps) if end > 0]
    return Run(
        total_steps=min(ends, default=None),
        steps_per_epoch=steps[0] if steps and len(set(steps)) == 1 else None,
        why="gradient accumulation changes from epoch to epoch",
    )


def _forget_data(trainer: L.Trainer) -> None:
    loop = trainer.fit_loop
    if loop._data_fetcher is not None:
        loop._data_fetcher.teardown()
    loop._data_fetcher = loop._combined_loader = None


def refuse_sharded(trainer: L.Trainer, field: str, *, rows: bool = False) -> None:
    """Refuse strategies under which a process does not hold whole weights.

    Args:
        trainer: The Trainer.
        field: Name of the owner, for messages.
        rows: Whether it works on the rows that FSDP2 leaves to each process (``ModelParallelStrategy``), too.

    Raises:
        CompressionError: The strategy is another one, with the reason.
    """
    strategy = trainer.strategy
    # DeepSpeed's strategy is derived from DDP's.
    deepspeed = is_instance(strategy, DeepSpeedStrategy)
    whole = is_instance(strategy, SingleDeviceStrategy) or is_instance(strategy, DDPStrategy)
    if (whole and not deepspeed) or (rows and is_instance(strategy, ModelParallelStrategy)):
        return
    fix = f"{field} needs whole weights in every process; leave it out, or use strategy='ddp'."
    if rows and is_instance(strategy, FSDPStrategy):
        fix = (
            "FSDP1 flattens weights into one vector, in which their rows are lost; use ModelParallelStrategy, whose "
            "FSDP2 keeps them."
        )
    elif rows and deepspeed:
        fix = (
            "DeepSpeed steps a flat copy of the weights of its own, in which masks cannot be kept; use "
            "ModelParallelStrategy or strategy='ddp'."
        )
    raise CompressionError.field(
        f"{field}: Trainer.strategy",
        expected="a single device, DDP or ModelParallelStrategy" if rows else "a single device or DDP",
        got=type(strategy).__name__,
        fix=fix,
    )
