"""Quantization-aware training as a Lightning callback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from typing_extensions import override

from lightning_compress.callbacks.checkpoints import PlateauSteps, SavingCallback, correct_progress
from lightning_compress.callbacks.phases import PhaseTimes
from lightning_compress.callbacks.quantizing.attached import AttachedQuantizers
from lightning_compress.callbacks.quantizing.first_batch import FirstBatch
from lightning_compress.callbacks.quantizing.frozen_norms import FrozenNorms
from lightning_compress.callbacks.quantizing.sync_ranges import average_ranges, mean_over_ranks
from lightning_compress.callbacks.run_length import EpochCount, measures_batchnorm, refuse_sharded
from lightning_compress.foundation.settings_diff import check_accept
from lightning_compress.quantization import Quantization
from lightning_compress.quantization.bit_schedule import BitPlan, BitSchedule
from lightning_compress.quantization.settings import (
    ActivationScheme,
    Backend,
    Processor,
    QuantizationSettings,
    RangeMethod,
)
from lightning_compress.timeline import TimePoint

_FIELD = "QuantizationAwareTraining"


class QuantizationAwareTraining(SavingCallback):
    """Trains a model with fake-quantized weights and activations.

    Args:
        weight_bits: Bits of weights, 2 to 8; ``None`` leaves them float. Points in time with bits that fall, such as
            ``{0: 8, 0.4: 4, 0.7: 2}``, go down step by step; learned scales start over at each.
        activation_bits: Bits of activations, likewise.
        weight_granularity: ``"channel"``, ``"tensor"`` or ``"group:<n>"``.
        activation_scheme: ``"affine"`` or ``"symmetric"``.
        range: ``"minmax"`` (moving average), ``"percentile"``, ``"mse"`` or ``"learned"`` (LSQ).
        start: When fake quantization begins.
        freeze_range: When activation ranges stop moving; ``None`` never.
        freeze_batchnorm: When batch-norm statistics stop moving; ``None`` never.
        backend: Runtime that decides where activations are quantized.
        targets: Patterns of layers to quantize; ``None`` means all that can be.
        ignore: Patterns of layers to leave in float.
        overrides: Pattern → ``{"weight_bits", "activation_bits", "weight_granularity"}`` or ``None`` (float).
        momentum: Weight of a new batch in the moving average of ranges.
        observe_every: Training forwards between two range observations.
        first_last_bits: Least bits of the first and last layers; ``None`` treats them like all others.
        processor: Processors that the file is for: ``"any"``, or ``"vnni"``, whose 8-bit kernels do not saturate.
        reduce_range: Keep weights within 7 bits, which are right and fast in ONNX Runtime on every processor; ``None``
            does so for ``backend="onnxruntime"`` and ``processor="any"``.
        range_lr: Learning rate of learned ranges, in relative change a step; it follows the user's schedule.
        example_inputs: Inputs of one forward, to place activation quantizers. By default the module's
            ``example_input_array``, or else the first training batch, which then runs in float.
        accept_changes: Go on from a checkpoint of other settings, with a warning that lists the differences, and not
            refuse it. With other bits, ranges or layers the quantizers are made again and learn their ranges again;
            learning rate and points in time take effect as they are.

    Attributes:
        settings: What was asked for, checked.
        times: When quantization starts and what is frozen when, as far as it is given.

    Raises:
        CompressionError: A setting is not allowed (at construction) or does not fit the run (before training).

    Example:
        >>> QuantizationAwareTraining(weight_bits=8, activation_bits=8, start=0.5).settings.weight_bits
        8
    """

    def __init__(
        self,
        weight_bits: BitPlan = 8,
        activation_bits: BitPlan = 8,
        *,
        weight_granularity: str = "channel",
        activation_scheme: ActivationScheme = "affine",
        range: RangeMethod = "minmax",
        start: TimePoint = 0,
        freeze_range: TimePoint | None = None,
        freeze_batchnorm: TimePoint | None = None,
        backend: Backend | None = "onnxruntime",
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
        momentum: float = 0.1,
        observe_every: int = 1,
        first_last_bits: int | None = 8,
        processor: Processor = "any",
        reduce_range: bool | None = None,
        range_lr: float = 0.001,
        example_inputs: Any = None,
        accept_changes: bool = False,
    ) -> None:
        super().__init__()
        self._accept_changes = check_accept(accept_changes, _FIELD)
        self._weight_bits = BitSchedule.of(weight_bits, "weights", f"{_FIELD}.weight_bits")
        self._activation_bits = BitSchedule.of(activation_bits, "activations", f"{_FIELD}.activation_bits")
        self.settings = QuantizationSettings(
            weight_bits=self._weight_bits.first,
            activation_bits=self._activation_bits.first,
            weight_granularity=weight_granularity,
            activation_scheme=activation_scheme,
            range=range,
            backend=backend,
            targets=targets,
            ignore=ignore,
            overrides=overrides,
            momentum=momentum,
            observe_every=observe_every,
            first_last_bits=first_last_bits,
            processor=processor,
            reduce_range=reduce_range,
            field=_FIELD,
        )
        self._quantizers = AttachedQuantizers(self.settings, range_lr)
        self.phases: dict[str, int] = {}
        points = {"start": start, "freeze_range": freeze_range, "freeze_batchnorm": freeze_batchnorm}
        self._phases = PhaseTimes(points, _FIELD)
        for schedule in (self._weight_bits, self._activation_bits):
            for name, (time, _) in schedule.changes.items():
                self._phases.add(name, time)
        self.times = self._phases.times
        self._example_inputs = example_inputs
        self._pickled: AttachedQuantizers | None = None
        self._plateaus = PlateauSteps()
        self._epoch = EpochCount()
        self._norms = FrozenNorms()
        self._first_batch = FirstBatch()

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        refuse_sharded(trainer, _FIELD)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        saved = self._quantizers.saved
        if saved is not None:
            self._epoch.steps = saved["epoch_steps"]
        run = self._epoch.begin(trainer, self)
        self.phases = self._phases.steps(run)
        self._phases.refuse_beyond(self.phases, trainer, run)
        for schedule in (self._weight_bits, self._activation_bits):
            schedule.check(self.phases)
        if self.settings.activation_bits:
            self._phases.refuse_before_start("freeze_range", self.phases, "Ranges are learned from start on.")
        self._quantizers.settle_changes(self._described_run(), accept=self._accept_changes)
        resumed = self._quantizers.saved is not None
        if not self._quantizers.restore(pl_module):
            self._quantizers.attach(pl_module, self._example_inputs)
        self._quantizers.track_ranges()
        # The step of a checkpoint is restored after this hook; its phase is that of the checkpoint till then, and for
        # good where nothing is left to train.
        if not resumed:
            self._enter_phase(trainer.global_step, pl_module)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._plateaus.make(trainer)
        step = trainer.global_step
        if step == 0:
            self._quantizers.ranges.forget_rates()
        self._enter_phase(step, pl_module)
        if self._quantizers.made_anew and self.phases.get("freeze_range", step + 1) <= step:
            raise self._phases.wrong(
                "freeze_range",
                f"a point after optimizer step {step}, where the run goes on",
                "With other settings than the checkpoint's, ranges have to be learned again.",
            )

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not when a fit starts: a resumed one does not know its step yet, and has its bits from the checkpoint.
        self._enter_bits(trainer.global_step)
        self._enter_phase(trainer.global_step, pl_module)
        if measures_batchnorm(trainer):
            self._norms.release()
        self._first_batch.begin(self._quantizers.needed, pl_module)

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._quantizers.needed.weights.refuse_replaced()

    @override
    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        if pl_module.automatic_optimization and self._first_batch.loss_is_there(self._quantizers.needed):
            self._quantizers.track_ranges()

    @override
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self.settings.range != "learned":
            return
        number = next(i for i, one in enumerate(trainer.optimizers) if one is optimizer)
        average = mean_over_ranks(trainer) if trainer.world_size > 1 else None
        self._quantizers.ranges.step(self._quantizers.ranges.share(number, optimizer.param_groups[0]), average)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        placed = self._first_batch.end(self._quantizers.needed, automatic=pl_module.automatic_optimization)
        # Not where other processes may have run other layers: their quantizers must be the same ones.
        if trainer.world_size == 1:
            placed |= self._quantizers.needed.place_late()
        if placed:
            self._quantizers.track_ranges()
        # In the phase of this batch: the one before ranges freeze has moved them, too.
        if trainer.world_size > 1 and self._quantizers.needed.enabled and not self._quantizers.needed.frozen:
            average_ranges(self._quantizers.needed, mean_over_ranks(trainer))
        self._enter_phase(trainer.global_step, pl_module)
        self._enter_bits(trainer.global_step)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        run = self._epoch.end_epoch(trainer)
        if run is not None:
            self.phases = self._phases.steps(run)
            self._enter_phase(trainer.global_step, pl_module)
            self._enter_bits(trainer.global_step)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._phases.warn_of_unreached(self.phases, trainer.global_step)
        if self._quantizers.needed.gains_by_recording:
            rank_zero_warn(
                f"{_FIELD}: no training batch went through the network, so no activation is quantized. Give "
                f"{_FIELD}.example_inputs."
            )

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._norms.release()
        self._first_batch.close()

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._norms.release()

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._quantizers.evaluate(trainer, pl_module)

    @override
    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._quantizers.evaluate(trainer, pl_module)

    @override
    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._quantizers.evaluate(trainer, pl_module)

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        correct_progress(trainer, checkpoint)
        self._plateaus.take(checkpoint)

    @override
    def state_dict(self) -> dict[str, Any]:
        own = self._quantizers.state_dict()
        return {**own, "run": self._described_run(), "epoch_steps": self._epoch.steps} if own else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._quantizers.saved = state_dict or None

    def __getstate__(self) -> dict[str, Any]:
        # The module is not the callback's: from a pickle it takes its quantizers to the next module that it meets.
        # A process that a launcher spawns opens the memory of the tensors only later, so they are kept for it.
        self._pickled = AttachedQuantizers(self.settings, self._quantizers.ranges.lr)
        self._pickled.saved = self.state_dict() or self._quantizers.saved
        return {**self.__dict__, "_quantizers": self._pickled, "_norms": FrozenNorms(), "_pickled": None}

    @property
    def quantization(self) -> Quantization | None:
        """The quantizers of the module; ``None`` before the first run."""
        return self._quantizers.found

    @property
    def nonfinite_steps(self) -> int:
        """Optimizer steps in which the gradients of learned ranges were not finite and were left out."""
        return self._quantizers.ranges.nonfinite

    def _described_run(self) -> dict[str, Any]:
        """What decides on the run besides the settings of the quantizers."""
        return {**self.phases, "range_lr": self._quantizers.ranges.lr}

    def _enter_phase(self, step: int, module: nn.Module) -> None:
        self._quantizers.needed.enabled = step >= self.phases["start"]
        self._quantizers.needed.frozen = step >= self.phases.get("freeze_range", step + 1)
        if step >= self.phases.get("freeze_batchnorm", step + 1):
            self._norms.freeze(module)

    def _enter_bits(self, step: int) -> None:
        now = (self._weight_bits.at(step, self.phases), self._activation_bits.at(step, self.phases))
        if now != (self._quantizers.needed.weight_bits, self._quantizers.needed.activation_bits):
            self._quantizers.needed.set_bits(*now)
        self._quantizers.needed.settled = now == (self._weight_bits.last, self._activation_bits.last)
