"""Prunes a LightningModule while it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_compress.callbacks.checkpoints import PlateauSteps, SavingCallback, correct_progress
from lightning_compress.callbacks.run_length import EpochCount, measures_batchnorm, refuse_sharded
from lightning_compress.errors import CompressionError
from lightning_compress.foundation.settings_diff import check_accept
from lightning_compress.lightning_packages import is_instance, is_overridden
from lightning_compress.pruning import Pruner
from lightning_compress.pruning.criteria import CriterionFunction
from lightning_compress.pruning.distributions import DistributionName
from lightning_compress.pruning.optimizer_state import (
    forget_pruned,
    gradient_decides,
    mask_gradients,
    mask_weights_and_state,
    owned,
)
from lightning_compress.pruning.schedule import Curve, ScheduleName
from lightning_compress.pruning.settings import RegrowName, Settings
from lightning_compress.timeline import TimePoint, parse


class GradualMagnitudePruning(SavingCallback):
    """Raise the sparsity of a model's weights along a schedule while it trains (Zhu & Gupta 2017).

    Pruned weights, and the optimizer's state for them, are zero after every optimizer step. Checkpoints hold
    the plain model with zeros in it; masks are in the callback's state, so that a resumed run goes on bit for bit.

    Points in time are resolved once, from ``trainer.estimated_stepping_batches``, and count optimizer steps whatever
    the gradient accumulation.

    Args:
        final_sparsity: Share of zeros at the end, in [0, 1).
        initial_sparsity: Share of zeros from ``start`` on.
        start: First update. A step, a fraction of the run, or ``"3ep"``; see :mod:`lightning_compress.timeline`.
        end: Last update.
        every: Distance between updates; ``None`` makes 50 updates between start and end, or one at each step.
        schedule: How sparsity rises from start to end: a name, or a callable [0, 1] → [0, 1].
        distribution: ``"global"`` ranks all weights together, ``"uniform"`` gives each layer the same sparsity,
            ``"erk"`` follows Evci et al. 2020.
        pattern: ``"unstructured"``, ``"n:m"``, ``"block:1x4"`` or ``"channel"``.
        criterion: ``"magnitude"``, ``"movement"``, ``"taylor"``, ``"random"``, or a callable
            ``(weight, gradient or None) → scores`` whose high scores are kept.
        regrow: ``"gradient"`` (RigL) or ``"random"`` (SET) moves connections at each update; ``None`` does not.
        drop_fraction: Share of the connections that regrowth moves at the start; decays to 0 by a cosine.
        layer_floor: Share of each layer that is always kept. ``None``: a tenth of the share that all layers keep on
            average, 0.02 at a final sparsity of 0.8, so that no layer is pruned whole.
        channel_multiple: For ``pattern="channel"``: round the channels that stay in each group to the nearest multiple.
            Kernels work on 8 or 16 channels at a time, so others cost as much as the next multiple.
        keep_zeros: Take weights that are zero now as pruned already, to continue from a sparse checkpoint.
        freeze: Only keep the zeros there are; no ``final_sparsity`` then.
        targets: Patterns of what to prune; see :mod:`lightning_compress.targets`. ``None``: every convolution,
            linear, recurrent and attention weight, and every other matrix that a product reads as its weight.
        ignore: Patterns of what to leave alone.
        overrides: Pattern → ``{"final_sparsity", "initial_sparsity", "layer_floor", "pattern"}`` for what it
            names among the targets, or ``None`` to leave it out. A layer with its own sparsity or pattern leaves the
            common pool.
        example_inputs: A tensor, or a tuple of positional or dict of keyword arguments of ``forward``; by default the
            module's ``example_input_array``. One forward shows which parameters are weights (without it, classes and
            names decide) and which channels depend on each other (needed for ``pattern="channel"``).
        seed: For random scores and regrowth.
        accept_changes: Go on from a checkpoint of other settings, with a warning that lists the differences, and not
            refuse it.

    Attributes:
        settings: What was asked for, checked.
        pruner: The pruner, from ``on_fit_start`` on.

    Raises:
        CompressionError: A setting is not allowed (at construction) or does not fit the model or the run (before
            training).

    Example:
        >>> GradualMagnitudePruning(final_sparsity=0.9, start=0.1, end=0.6, every=100).pruner is None
        True
    """

    def __init__(
        self,
        final_sparsity: float | None = None,
        *,
        initial_sparsity: float = 0.0,
        start: TimePoint = 0.1,
        end: TimePoint = 0.6,
        every: TimePoint | None = None,
        schedule: ScheduleName | Curve = "cubic",
        distribution: DistributionName = "global",
        pattern: str = "unstructured",
        criterion: str | CriterionFunction = "magnitude",
        regrow: RegrowName | None = None,
        drop_fraction: float = 0.3,
        layer_floor: float | None = None,
        channel_multiple: int = 1,
        keep_zeros: bool = False,
        freeze: bool = False,
        targets: Iterable[str] | None = None,
        ignore: Iterable[str] = (),
        overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
        example_inputs: Any = None,
        seed: int = 0,
        accept_changes: bool = False,
    ) -> None:
        super().__init__()
        self.settings = Settings.check(
            final_sparsity=final_sparsity,
            initial_sparsity=initial_sparsity,
            start=start,
            end=end,
            every=every,
            schedule=schedule,
            distribution=distribution,
            pattern=pattern,
            criterion=criterion,
            regrow=regrow,
            drop_fraction=drop_fraction,
            layer_floor=layer_floor,
            channel_multiple=channel_multiple,
            keep_zeros=keep_zeros,
            freeze=freeze,
            targets=targets,
            ignore=ignore,
            overrides=overrides,
            seed=seed,
            field=type(self).__name__,
        )
        self._accept_changes = check_accept(accept_changes, type(self).__name__)
        self._example_inputs = example_inputs
        self.pruner: Pruner | None = None
        self._restored: dict[str, Any] | None = None
        self._handles: list[RemovableHandle] = []
        self._gradients_masked: set[int] = set()
        self._averaging = False
        self._plateaus = PlateauSteps()
        self._epoch = EpochCount()
        self._trust_gradients = True

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # A state that came with an earlier trainer.test(ckpt_path=...) has nothing to do with this run.
        self._restored = None
        if stage != "fit":
            return
        refuse_sharded(trainer, type(self).__name__, rows=True)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        averaging = [i for i, callback in enumerate(callbacks) if is_instance(callback, WeightAveraging)]
        self._averaging = bool(averaging)
        if averaging and max(averaging) > callbacks.index(self):
            raise CompressionError(
                f"{type(self).__name__}: list {type(callbacks[max(averaging)]).__name__} before it in "
                "Trainer(callbacks=[...]). Averaged weights are written back by that callback and have to be "
                "masked after it."
            )
        # Hooks that run after ours may write to gradients; then weights and state are masked after the step.
        later = callbacks[callbacks.index(self) + 1 :]
        self._trust_gradients = not (
            is_overridden("on_before_optimizer_step", pl_module, LightningModule)
            or is_overridden("configure_gradient_clipping", pl_module, LightningModule)
            or any(is_overridden("on_before_optimizer_step", callback, Callback) for callback in later)
        )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove_hooks()
        if self._restored is not None:
            self._epoch.steps = self._restored.get("epoch_steps")
        run = self._epoch.begin(trainer, self)
        settings = self.settings
        if trainer.fast_dev_run and not settings.freeze:  # type: ignore[attr-defined]
            # The few batches of a trial run see the last update, whatever the schedule.
            end = parse(run.total_steps or 1, f"{settings.field}.end")
            settings = dataclasses.replace(settings, start=end, end=end, every=parse(1, f"{settings.field}.every"))
        before = self.pruner
        self.pruner = Pruner.from_settings(pl_module, settings, run, self._example_inputs)
        if self._restored is not None:
            self._restore()
        elif before is not None and trainer.global_step > 0:
            # The same trainer goes on with another fit.
            self.pruner.adopt(before)
        for optimizer in trainer.optimizers:
            self._handles.append(optimizer.register_step_post_hook(self._after_optimizer_step))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._restored is not None:
            # Strategies that shard load checkpoints after on_fit_start.
            self._restore()
        self._plateaus.make(trainer)
        # An update that waits for gradients, in a run that goes on with other settings, is made after a first step.
        if not (trainer.global_step > 0 and self.settings.needs_gradient):
            self._update(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Weights that were averaged since before they were pruned are to be measured as they will be.
        if batch_idx == 0 and measures_batchnorm(trainer):
            _made(self.pruner).apply()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        pruner = _made(self.pruner)
        if pruner.idle and not self.settings.needs_gradient:
            return
        # Before on_train_batch_end counts the steps of this batch, as many as there are optimizers may be done.
        soon = trainer.global_step + max(1, len(trainer.optimizers))
        if (
            pruner.observe(soon, owned(optimizer, pruner.masks_by_parameter()))
            or pruner.idle
            or not self._trust_gradients
            or not gradient_decides(optimizer)
        ):
            return
        if mask_gradients(optimizer, pruner.masks_by_parameter()):
            self._gradients_masked.add(id(optimizer))

    def _after_optimizer_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        # Gradients were not masked where the optimizer was stepped behind Lightning's back, or may not be trusted.
        if id(optimizer) in self._gradients_masked:
            self._gradients_masked.discard(id(optimizer))
        elif not _made(self.pruner).idle:
            mask_weights_and_state(optimizer, _made(self.pruner).masks_by_parameter())

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Before checkpoint callbacks, which Lightning moves last: a checkpoint of step n has the masks of step n.
        self._update(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = self._epoch.end_epoch(trainer)
        if run is not None:
            _made(self.pruner).reschedule(run)
            # An update that waits for gradients is made after the next step.
            if not self.settings.needs_gradient:
                self._update(trainer)

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._averaging and self.pruner is not None and not trainer.sanity_checking:
            self.pruner.apply()

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._averaging and self.pruner is not None:
            self.pruner.mask_state_dict(checkpoint["state_dict"])

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pruner = _made(self.pruner)
        pruner.apply()
        if trainer.global_step < pruner.schedule.end:
            rank_zero_warn(
                f"{type(self).__name__}: training ended at optimizer step {trainer.global_step}, before the last "
                f"mask update at {pruner.schedule.end}. Sparsity is {pruner.sparsity():.4f}, not "
                f"{pruner.schedule.final:.4f}."
            )

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove_hooks()
        _made(self.pruner).apply()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove_hooks()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._remove_hooks()

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        correct_progress(trainer, checkpoint)
        self._plateaus.take(checkpoint)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self.pruner is None else {**self.pruner.state_dict(), "epoch_steps": self._epoch.steps}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def _restore(self) -> None:
        assert self._restored is not None
        _made(self.pruner).load_state_dict(self._restored, accept_changes=self._accept_changes)
        self._restored = None

    def _update(self, trainer: Trainer) -> None:
        pruner = _made(self.pruner)
        if pruner.due(trainer.global_step) and pruner.step(trainer.global_step):
            for optimizer in trainer.optimizers:
                forget_pruned(optimizer, pruner.masks_by_parameter())

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._gradients_masked.clear()


def _made(pruner: Pruner | None) -> Pruner:
    if pruner is None:
        raise CompressionError("GradualMagnitudePruning: its pruner is made in on_fit_start, which has not run.")
    return pruner
