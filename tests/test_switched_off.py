"""A callback that is in the list and has nothing to do yet adds no tensor operation to a step."""

from __future__ import annotations

import itertools
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning_modules import PlainModule, loader, quiet_trainer
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_compress import (
    CompressedCheckpoint,
    CompressionMonitor,
    GradualMagnitudePruning,
    KnowledgeDistillation,
    QuantizationAwareTraining,
)

FAR = 10_000


class Count(TorchDispatchMode):
    """Counts tensor operations, those of backward and of the optimizer too."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


class Stop(Callback):
    """Ends a run that was promised more steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step


def operations(callbacks: list[Callback], steps: int) -> int:
    """Tensor operations of a fit."""
    torch.manual_seed(0)
    module = PlainModule()
    module.example_input_array = torch.zeros(1, 3, 8, 8)
    checkpoints = any(isinstance(callback, CompressedCheckpoint) for callback in callbacks)
    with Count() as count:
        quiet_trainer(
            callbacks=[*callbacks, Stop(steps)], enable_checkpointing=checkpoints, max_epochs=-1, max_steps=FAR
        ).fit(module, loader(16))
    return count.operations


def pruning() -> Callback:
    return GradualMagnitudePruning(0.8, start=FAR - 10, end=FAR, every=1)


def quantization() -> Callback:
    return QuantizationAwareTraining(start=FAR - 10)


def distillation() -> Callback:
    return KnowledgeDistillation("self", start=FAR - 10)


def monitor() -> Callback:
    return CompressionMonitor(print_phases=False)


def checkpoint() -> Callback:
    return CompressedCheckpoint(every_n_train_steps=FAR)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [pruning, quantization, distillation, monitor, checkpoint])
def test_a_step_has_the_operations_that_it_has_without_the_callback(make: Any) -> None:
    # Two lengths, so that what the start and the end of a fit take drops out.
    plain = operations([], 10) - operations([], 4)
    assert plain > 6 * 50, "a step is seen with its backward pass"
    assert operations([make()], 10) - operations([make()], 4) == plain


@pytest.mark.filterwarnings("ignore")
def test_before_its_start_pruning_makes_no_pass_over_weights_or_gradients() -> None:
    class Spoil(Callback):
        """Masks that would leave nothing, if they were applied."""

        def on_train_start(self, *args: Any) -> None:
            for mask in callback.pruner.masks.values():
                mask.fill_(False)

        def on_train_batch_end(self, trainer: Any, pl_module: PlainModule, *args: Any) -> None:
            if trainer.global_step < 10:
                seen.append(pl_module.net.fc.weight.detach().clone())

    seen: list[torch.Tensor] = []
    callback = GradualMagnitudePruning(0.8, start=10, end=16, every=1, layer_floor=0.0)
    quiet_trainer(callbacks=[callback, Spoil()]).fit(PlainModule(), loader())
    assert all((weight != 0).all() for weight in seen)
    assert all((one != other).all() for one, other in itertools.pairwise(seen))
