"""Sparsity, bits and bytes while a model trains, as a Lightning callback."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from typing_extensions import override

from lightning_compress import loggers
from lightning_compress.callbacks.announcement import announce
from lightning_compress.callbacks.checkpoints.saving import SavingCallback
from lightning_compress.callbacks.pruning import GradualMagnitudePruning
from lightning_compress.callbacks.quantization import QuantizationAwareTraining
from lightning_compress.callbacks.run_length import refuse_sharded, run_length
from lightning_compress.lightning_packages import is_instance
from lightning_compress.metrics.functional import extra_bytes
from lightning_compress.metrics.layer_table import LayerRow, describe
from lightning_compress.metrics.macs import Macs, count_macs
from lightning_compress.monitoring import alerts, names, phases
from lightning_compress.monitoring.batch_signals import BatchSignals
from lightning_compress.monitoring.saturation import SaturationWatch
from lightning_compress.monitoring.series import PHASES, bar_text, history_point, own_metrics, phase, series
from lightning_compress.pruning import Pruner
from lightning_compress.quantization import Quantization

_POINTS = 100


class CompressionMonitor(SavingCallback):
    """Logs achieved and target sparsity, bit widths and sizes.

    Under ``compress/``: ``sparsity/global`` and ``sparsity/target`` (over all prunable weights), ``bits/weight`` (mean
    over the layers' weights) and ``bits/activation`` (mean over the layers' inputs), ``size_mb/dense`` and
    ``size_mb/packed`` (10^6 bytes; packed is an estimate from entropy), ``compression_ratio`` and ``bops``; ``ready``
    is 1 once target sparsity and bits are live, else 0; ``phase`` is 0 for dense, 1 for pruning, 2 for pruned, 3 for
    quantized, 4 for pruning + quantized and 5 for pruned + quantized; ``saturation/mean`` and ``saturation/max`` are
    the shares of activations beyond their ranges in a batch; ``drift/mean`` and ``drift/max`` how far ranges have moved
    since the last measurement, in powers of two; ``nonfinite`` in how many batches so far NaN or infinity was kept out
    of the ranges. The progress bar shows sparsity and bits. Before training a table of the phases is printed to
    standard error, and the plan goes to the loggers; when training ends they get one table with a row per layer, one of
    the layers over time, and a picture of the schedule.

    A warning, and an alert of W&B, says once when sparsity leaves its schedule, when a layer dies, when the activations
    of a layer saturate, and when they are not finite.

    The pruning and quantization callbacks of the Trainer are found by their class; each may be missing, and the order
    does not matter. A model is measured when a phase begins, at the ends of epochs and after mask updates, then at
    most a hundred times a run; Lightning writes the numbers at the Trainer's ``log_every_n_steps``.

    Args:
        example_inputs: Inputs of one forward, to count bit operations: a tensor, a tuple of arguments or a dict of
            keyword arguments. By default the module's ``example_input_array``; with neither, ``bops`` is left out.
        print_phases: Whether to print the table of phases.
        histograms: Whether W&B and TensorBoard get a histogram of every pruned or quantized weight at each epoch's end.

    Attributes:
        history: One dict per measurement: ``step`` (optimizer steps done), ``sparsity``, ``sparsity_target``,
            ``weight_bits``, ``activation_bits``, ``phase``. Kept in checkpoints.
        evaluations: One dict for each validation during the fit: ``step`` (optimizer steps done) and ``metrics``, name
            to value, as they were logged by then. Kept in checkpoints.
        layer_history: The weights at these measurements, where something had changed, as rows of
            ``loggers.HISTORY_COLUMNS``. Kept in checkpoints.
    """

    def __init__(self, example_inputs: Any = None, *, print_phases: bool = True, histograms: bool = False) -> None:
        super().__init__()
        self._print_phases, self._histograms = print_phases, histograms
        self.history: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.layer_history: list[list[Any]] = []
        self._example_inputs = example_inputs
        self._macs: Macs | None = None
        self._series: dict[str, float] = {}
        self._measured: tuple[Any, ...] = ()
        self._gap = 1
        self._unlogged = False
        self._restored = False
        self._watch: SaturationWatch | None = None
        self._signals = BatchSignals()
        self._ranges_due = False
        self._alerted: set[str] = set()

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        run = run_length(trainer)
        total = run.total_steps
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            announce(trainer, pl_module, total, printed=self._print_phases)
        self._gap = max(1, _log_interval(trainer) if total is None else total // _POINTS)
        example = self._example_inputs if self._example_inputs is not None else pl_module.example_input_array
        self._macs = None if example is None else count_macs(pl_module, example)
        # A resumed run makes the measurements that the whole run made. One that stopped after the last batch of an
        # epoch goes on in the next, and has missed the end of the epoch.
        missed = run.steps_per_epoch is not None and trainer.global_step % run.steps_per_epoch == 0
        if not self._restored or (missed and self.history[-1]["step"] < trainer.global_step):
            self._measure(trainer, pl_module)
        self._restored = False

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # A state that came with an earlier trainer.test(ckpt_path=...) has nothing to do with this run.
        self._restored = False
        if stage == "fit" and is_instance(trainer.strategy, ModelParallelStrategy):
            refuse_sharded(trainer, type(self).__name__)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # At the start of a batch every callback has finished the step before, whatever their order.
        if self._due(trainer):
            self._measure(trainer, pl_module)
        # What quantizers cut off changes from batch to batch, also where nothing else does.
        _, quantization = compression(trainer)
        due = quantization is not None and quantization.enabled and trainer.global_step % self._gap == 0
        if quantization is not None and due and not _compiled(trainer, pl_module):
            self._watch = SaturationWatch(quantization)
        self._ranges_due = due

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._watch is not None:
            watch, self._watch = self._watch, None
            self._alert(trainer, self._signals.saturated(watch.close()))
            self._series |= self._signals.saturation
        if self._ranges_due:
            self._look_at_ranges(trainer)
        # Lightning keeps what is logged until the epoch ends and writes it at its interval; in between, each call
        # would only cost time. With several optimizers these are more steps than Lightning writes, never fewer.
        interval = _log_interval(trainer)
        if self._unlogged and interval and trainer.global_step % interval == 0:
            pl_module.log_dict(self._series, on_step=True, on_epoch=False)
            self._unlogged = False

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._measure(trainer, pl_module)
        pl_module.log_dict(self._series, on_step=False, on_epoch=True, sync_dist=True)
        self._unlogged = True
        if self._histograms and trainer.is_global_zero:
            rows = {row.name: row for row in self.layers(trainer, pl_module) if row.weight}
            weights = {name: p for name, p in pl_module.named_parameters() if name in rows}
            loggers.log_histograms(trainer.loggers, weights, trainer.global_step)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            step, logged = trainer.global_step, trainer.callback_metrics
            self.evaluations = [point for point in self.evaluations if point["step"] < step]
            self.evaluations.append({"step": step, "metrics": own_metrics(logged)})

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and trainer.loggers:
            loggers.log_layers(trainer.loggers, self.layers(trainer, pl_module))
            loggers.log_layer_history(trainer.loggers, self.layer_history)
            if self.history:
                from lightning_compress.report import images

                loggers.log_image(trainer.loggers, loggers.SCHEDULE, images.schedule(self.history))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "history": [dict(point) for point in self.history],
            "evaluations": [dict(point) for point in self.evaluations],
            "layer_history": [list(row) for row in self.layer_history],
            **self._signals.state_dict(),
            "measured": list(self._measured),
            "series": dict(self._series),
            "unlogged": self._unlogged,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [dict(point) for point in state_dict["history"]]
        self.evaluations = [dict(point) for point in state_dict["evaluations"]]
        self.layer_history = [list(row) for row in state_dict["layer_history"]]
        self._signals.load_state_dict(state_dict)
        self._measured = tuple(state_dict["measured"])
        self._series = dict(state_dict["series"])
        self._unlogged = state_dict["unlogged"]
        self._restored = bool(self._measured)

    def layers(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[LayerRow]:
        """Describe every parameter as it is now.

        Args:
            trainer: Whose callbacks say what is pruned.
            pl_module: The module.
        """
        pruner, _ = compression(trainer)
        return describe(pl_module, pruner=pruner, macs=self._macs)

    def _look_at_ranges(self, trainer: L.Trainer) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, QuantizationAwareTraining) and callback.quantization is not None:
                self._alert(trainer, self._signals.moved(callback.quantization, callback.nonfinite_steps))
        self._series |= self._signals.ranges
        self._unlogged = True

    def _alert(self, trainer: L.Trainer, found: Iterable[alerts.Alert]) -> None:
        for alert in found:
            if alert.key not in self._alerted:
                self._alerted.add(alert.key)
                loggers.alert(trainer.loggers, alert.title, alert.text)

    def _due(self, trainer: L.Trainer) -> bool:
        if not self._measured:
            return True
        now = _state(trainer)
        if now[:-1] != self._measured[:-1]:
            return True
        return now[-1] != self._measured[-1] and trainer.global_step - self.history[-1]["step"] >= self._gap

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._measured = _state(trainer)
        pruner, quantization = compression(trainer)
        rows = self.layers(trainer, pl_module)
        self._series = series(
            rows,
            target=0.0 if pruner is None else pruner.sparsity_target(),
            extra=extra_bytes(pl_module),
            products=0 if self._macs is None else self._macs.products,
        )
        self._series[names.READY] = float(phases.ready(pruner, quantization))
        self._series[names.PHASE] = float(PHASES[self._measured[0]])
        if pruner is not None:
            self._series[names.CHURN] = pruner.churn
            self._series[names.DEAD_CHANNELS] = float(sum(pruner.dead_channels().values()))
        self._series |= self._signals.series
        self._unlogged = True
        step = trainer.global_step
        # A second fit, or one from an older checkpoint, writes the history again from where it starts.
        self.history = [point for point in self.history if point["step"] < step]
        self.history.append(history_point(step, self._series, self._measured[0]))
        self._remember_layers(rows, step)
        sparsity, target = self._series[names.SPARSITY], self._series[names.SPARSITY_TARGET]
        self._alert(trainer, alerts.find(rows, {}, before={}, sparsity=sparsity, target=target))
        trainer.progress_bar_metrics.update(bar_text(self._series))  # type: ignore[arg-type]

    def _remember_layers(self, rows: Sequence[LayerRow], step: int) -> None:
        """Add the layers' weights that are not as they were at the last measurement."""
        self.layer_history = [row for row in self.layer_history if row[0] < step]
        last = {row[1]: row[2:] for row in self.layer_history}
        for row in rows:
            now = [row.sparsity_target, round(row.sparsity, 6), row.weight_bits, row.activation_bits]
            if row.weight and last.get(row.name) != now:
                self.layer_history.append([step, row.name, *now])


def compression(trainer: L.Trainer) -> tuple[Pruner | None, Quantization | None]:
    """The pruner and the quantizers that a Trainer's callbacks brought, where there are any."""
    pruner, quantization = None, None
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradualMagnitudePruning):
            pruner = callback.pruner
        elif isinstance(callback, QuantizationAwareTraining):
            quantization = callback.quantization
    return pruner, quantization


def _compiled(trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
    """Whether some part of the model is compiled: it would be compiled again to be looked at."""
    parts = [*pl_module.modules(), trainer.strategy.model]
    return any(
        isinstance(part, torch._dynamo.OptimizedModule) or getattr(part, "_compiled_call_impl", None) is not None
        for part in parts
    )


def _log_interval(trainer: L.Trainer) -> int:
    return 1 if trainer.fast_dev_run else int(trainer.log_every_n_steps)  # type: ignore[attr-defined]


def _state(trainer: L.Trainer) -> tuple[Any, ...]:
    """What, when it changes, changes the numbers: phase, activations found, bits, and last the newest mask update."""
    pruner, quantization = compression(trainer)
    schedule = None if pruner is None else pruner.schedule
    step = trainer.global_step
    return (
        phase(step, schedule, quantization),
        0 if quantization is None else len(quantization.activations),
        0 if quantization is None else quantization.weight_bits,
        0 if quantization is None else quantization.activation_bits,
        None if schedule is None else schedule.last_update(step),
    )
