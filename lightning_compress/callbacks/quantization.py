"""Quantization-aware training as a Lightning callback."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from lightning_compress.callbacks.checkpoints import PlateauSteps, SavingCallback, mend_progress
from lightning_compress.callbacks.run_length import EpochCount, measures_batchnorm, refuse_sharded
from lightning_compress.callbacks.sync_ranges import average_ranges, mean_over_ranks
from lightning_compress.errors import CompressionError
from lightning_compress.foundation import pytree
from lightning_compress.foundation.recorded_forward import Tape, recording
from lightning_compress.foundation.settings_diff import check_accept, settle
from lightning_compress.quantization.attach import Quantization, find, install, refuse_replaced, strip
from lightning_compress.quantization.bit_schedule import BitPlan, BitSchedule
from lightning_compress.quantization.ranges.optimizer import RangeOptimizer
from lightning_compress.quantization.settings import (
    ActivationScheme,
    Backend,
    Processor,
    QuantizationSettings,
    RangeMethod,
)
from lightning_compress.timeline import TimePoint, parse

_FIELD = "QuantizationAwareTraining"


class QuantizationAwareTraining(SavingCallback):
    """Trains a model with fake-quantized weights and activations.

    Args:
        weight_bits: Bits of weights, 2 to 8; ``None`` leaves them float. Points in time with bits that fall, such as
            ``{0: 8, 0.4: 4, 0.7: 2}``, go down step by step; learned scales start anew at each.
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
            refuse it. With other bits, ranges or layers the quantizers are made anew and learn their ranges again;
            learning rate and points in time take effect as they are.

    Attributes:
        settings: What was asked for, checked.
        times: When quantization starts and what is frozen when, as far as it is given.
        quantization: The quantizers of the module; ``None`` before the first run.

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
        if isinstance(range_lr, bool) or not range_lr > 0:
            raise CompressionError.field(f"{_FIELD}.range_lr", expected="a positive number", got=range_lr)
        self.quantization: Quantization | None = None
        self._ranges = RangeOptimizer(range_lr)
        self.phases: dict[str, int] = {}
        self._points: dict[str, TimePoint | None] = {
            "start": start,
            "freeze_range": freeze_range,
            "freeze_batchnorm": freeze_batchnorm,
        }
        self.times = {name: parse(at, f"{_FIELD}.{name}") for name, at in self._points.items() if at is not None}
        for schedule in (self._weight_bits, self._activation_bits):
            for name, (time, _) in schedule.changes.items():
                self.times[name] = time
                self._points[name] = time.value if time.unit == "fraction" else f"{time.value:g} {time.unit}s"
        self._example_inputs = example_inputs
        self._said_float: Any = None
        self._saved: dict[str, Any] | None = None
        self._pickled: dict[str, Any] = {}
        self._made_anew = False
        self._plateaus = PlateauSteps()
        self._epoch = EpochCount()
        self._frozen_norms: set[nn.Module] = set()
        self._recording: AbstractContextManager[Tape] | None = None
        self._tape: Tape | None = None

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        refuse_sharded(trainer, _FIELD)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._saved is not None:
            self._epoch.steps = self._saved["epoch_steps"]
        run = self._epoch.begin(trainer, self)
        self.phases = {name: time.steps(run) for name, time in self.times.items()}
        if run.total_steps is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            for name, step in self.phases.items():
                if step >= run.total_steps:
                    raise CompressionError.field(
                        f"{_FIELD}.{name}",
                        expected=f"a point before the end of the run ({run.total_steps} optimizer steps)",
                        got=self._points[name],
                        fix="As it stands, that phase would never begin.",
                    )
        for schedule in (self._weight_bits, self._activation_bits):
            schedule.check(self.phases)
        if self.settings.activation_bits and self.phases.get("freeze_range", math.inf) <= self.phases["start"]:
            raise CompressionError.field(
                f"{_FIELD}.freeze_range",
                expected=f"a point after start (optimizer step {self.phases['start']})",
                got=self._points["freeze_range"],
                fix="Ranges are learned from start on.",
            )
        self._settle_changes()
        resumed = self._saved is not None
        if not self._restore(pl_module):
            strip(pl_module)
            self.quantization = install(pl_module, self.settings)
            self._ranges = RangeOptimizer(self._ranges.lr)
            example = self._example_inputs if self._example_inputs is not None else pl_module.example_input_array
            if self.quantization.gains_by_recording and example is not None:
                self._record(pl_module, example)
        self._ranges.track(self._attached.parameters())
        # The step of a checkpoint is restored after this hook; its phase is that of the checkpoint till then, and for
        # good where nothing is left to train.
        if not resumed:
            self._enter_phase(trainer.global_step, pl_module)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._plateaus.make(trainer)
        step = trainer.global_step
        if step == 0:
            self._ranges.forget_rates()
        self._enter_phase(step, pl_module)
        if self._made_anew and self.phases.get("freeze_range", step + 1) <= step:
            raise CompressionError.field(
                f"{_FIELD}.freeze_range",
                expected=f"a point after optimizer step {step}, where the run goes on",
                got=self._points["freeze_range"],
                fix="With other settings than the checkpoint's, ranges have to be learned again.",
            )

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not when a fit starts: a resumed one does not know its step yet, and has its bits from the checkpoint.
        self._enter_bits(trainer.global_step)
        self._enter_phase(trainer.global_step, pl_module)
        if measures_batchnorm(trainer):
            self._release_batchnorm()
        if self._attached.gains_by_recording and self._recording is None:
            self._attached.enabled = False
            self._recording = recording(pl_module)
            self._tape = self._recording.__enter__()

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        refuse_replaced(self._attached)

    @override
    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        if pl_module.automatic_optimization:
            self._finish_recording(passed_over=False)

    @override
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self.settings.range != "learned":
            return
        number = next(i for i, one in enumerate(trainer.optimizers) if one is optimizer)
        average = mean_over_ranks(trainer) if trainer.world_size > 1 else None
        self._ranges.step(self._ranges.share(number, optimizer.param_groups[0]), average)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._finish_recording(passed_over=pl_module.automatic_optimization or not _reads_parameters(self._tape))
        # Not where other processes may have run other layers: their quantizers must be the same ones.
        if trainer.world_size == 1 and self._attached.place_late():
            self._ranges.track(self._attached.parameters())
        # In the phase of this batch: the one before ranges freeze has moved them, too.
        if trainer.world_size > 1 and self._attached.enabled and not self._attached.frozen:
            average_ranges(self._attached, mean_over_ranks(trainer))
        self._enter_phase(trainer.global_step, pl_module)
        self._enter_bits(trainer.global_step)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        run = self._epoch.end_epoch(trainer)
        if run is not None:
            self.phases = {name: time.steps(run) for name, time in self.times.items()}
            self._enter_phase(trainer.global_step, pl_module)
            self._enter_bits(trainer.global_step)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for name, step in self.phases.items():
            if step >= trainer.global_step:
                rank_zero_warn(
                    f"{_FIELD}: training ended at optimizer step {trainer.global_step}, before {name} at {step}, "
                    "which never came."
                )
        if self._attached.gains_by_recording:
            rank_zero_warn(
                f"{_FIELD}: no training batch went through the network, so no activation is quantized. Give "
                f"{_FIELD}.example_inputs."
            )

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._release_batchnorm()
        if self._recording is not None:
            self._recording.__exit__(None, None, None)
            self._recording = None

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._release_batchnorm()

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore(pl_module)
        self._say_float(trainer)

    @override
    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore(pl_module)
        self._say_float(trainer)

    @override
    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore(pl_module)
        self._say_float(trainer)

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        mend_progress(trainer, checkpoint)
        self._plateaus.take(checkpoint)

    @override
    def state_dict(self) -> dict[str, Any]:
        if self.quantization is None:
            return {}
        run = {"run": self._described_run(), "epoch_steps": self._epoch.steps}
        own = {**run, "range_optimizer": self._ranges.state_dict()}
        return {**self.quantization.state_dict(), **own}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict or None

    def __getstate__(self) -> dict[str, Any]:
        # The module is not the callback's: from a pickle it takes its quantizers to the next module that it meets.
        saved = self._saved if self.quantization is None else self.state_dict()
        # A process that a launcher spawns opens the memory of the tensors only later, so they are kept for it.
        self._pickled = {
            "quantization": None,
            "_ranges": RangeOptimizer(self._ranges.lr),
            "_frozen_norms": set(),
            "_saved": saved,
        }
        return {**self.__dict__, **self._pickled, "_pickled": {}}

    def _say_float(self, trainer: L.Trainer) -> None:
        """Say that a checkpoint of weights alone is evaluated in float, once for each."""
        live = self.quantization is not None and self.quantization.enabled
        if trainer.state.fn == "fit" or trainer.ckpt_path is None or live or self._said_float == trainer.ckpt_path:
            return
        self._said_float = trainer.ckpt_path
        rank_zero_warn(
            f"{_FIELD}: {trainer.ckpt_path} holds no live quantization (save_weights_only leaves it out, and so does a "
            f"checkpoint from before its start), so that the network runs in float here. For the quantized one, take a "
            f"checkpoint with the callbacks' states."
        )

    @property
    def nonfinite_steps(self) -> int:
        """Optimizer steps in which the gradients of learned ranges were not finite and were left out."""
        return self._ranges.nonfinite

    @property
    def _attached(self) -> Quantization:
        if self.quantization is None:
            raise CompressionError(f"{_FIELD} has not been attached to a module: it works inside Trainer.fit.")
        return self.quantization

    def _described_run(self) -> dict[str, Any]:
        """What decides on the run besides the settings of the quantizers."""
        return {**self.phases, "range_lr": self._ranges.lr}

    def _settle_changes(self) -> None:
        """Compare a checkpoint's settings with ours; quantizers of other settings are not taken over."""
        self._made_anew = False
        if self._saved is None:
            return
        saved, now = dict(self._saved["settings"]), self.settings.as_dict()
        settle(
            {**saved, **self._saved["run"]},
            {**now, **self._described_run()},
            _FIELD,
            accept=self._accept_changes,
            fix="start a new run from the weights alone",
        )
        if saved != now:
            self._saved, self._made_anew = None, True

    def _restore(self, module: nn.Module) -> bool:
        """Attach what a checkpoint held, or take up what is attached already."""
        if self._saved is not None:
            strip(module)
            self.quantization = install(module, self.settings)
            self.quantization.load_state_dict(self._saved)
            self._ranges = RangeOptimizer(self._ranges.lr)
            self._ranges.load_state_dict(self._saved["range_optimizer"])
            self._saved = None
        return self.quantization is not None and find(module) is self.quantization

    def _record(self, module: L.LightningModule, example: Any) -> None:
        given = self._example_inputs is not None
        field = f"{_FIELD}.example_inputs" if given else f"{type(module).__name__}.example_input_array"
        try:
            self._attached.record(_on_device(example, module.device))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
            strip(module)
            raise CompressionError(
                f"{field}: the forward of {type(module).__name__} does not run with it: {type(error).__name__}: {error}"
            ) from error

    def _enter_phase(self, step: int, module: nn.Module) -> None:
        self._attached.enabled = step >= self.phases["start"]
        self._attached.frozen = step >= self.phases.get("freeze_range", step + 1)
        if step >= self.phases.get("freeze_batchnorm", step + 1):
            for norm in module.modules():
                if isinstance(norm, _BatchNorm) and norm.training:
                    norm.eval()
                    self._frozen_norms.add(norm)

    def _release_batchnorm(self) -> None:
        for norm in self._frozen_norms:
            norm.train()
        self._frozen_norms.clear()

    def _enter_bits(self, step: int) -> None:
        now = (self._weight_bits.at(step, self.phases), self._activation_bits.at(step, self.phases))
        if now != (self._attached.weight_bits, self._attached.activation_bits):
            self._attached.set_bits(*now)
        self._attached.settled = now == (self._weight_bits.last, self._activation_bits.last)

    def _finish_recording(self, *, passed_over: bool) -> None:
        """Take what was recorded; a step that passed its batch over shows nothing, and the next one is recorded."""
        if self._recording is None or self._tape is None:
            return
        self._recording.__exit__(None, None, None)
        if not passed_over:
            self._attached.place(self._tape)
            self._ranges.track(self._attached.parameters())
        self._recording = self._tape = None


def _reads_parameters(tape: Tape | None) -> bool:
    return tape is not None and any(value.parameter for op in tape.ops for value in op.inputs)


def _on_device(example: Any, device: torch.device) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda t: t.to(device), example)
