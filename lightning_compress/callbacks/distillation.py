"""Knowledge distillation as a Lightning callback."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lightning_compress.callbacks.checkpoints import PlateauSteps, SavingCallback, correct_progress
from lightning_compress.callbacks.phases import PhaseTimes
from lightning_compress.callbacks.run_length import EpochCount, refuse_sharded
from lightning_compress.callbacks.teaching.distilled_step import DistilledStep
from lightning_compress.callbacks.teaching.teacher import (
    digest,
    from_file,
    from_state,
    frozen_copy,
    refuse_shared,
    share,
    weights,
)
from lightning_compress.distillation.distiller import Distiller
from lightning_compress.distillation.losses import Logits, Loss, check_losses, described
from lightning_compress.errors import CompressionError
from lightning_compress.foundation.settings_diff import check_accept, settle
from lightning_compress.timeline import Run, TimePoint

_FIELD = "KnowledgeDistillation"


class KnowledgeDistillation(SavingCallback):
    """Trains a student on its own loss and on the outputs of a teacher, with an unchanged ``training_step``.

    While a training step runs, the calls of the network are watched; the teacher then runs once on the same inputs,
    without gradients, and what the losses find is added to the loss that the step returned. So the total goes through
    one backward pass: gradient accumulation, mixed precision, clipping and DDP treat it as they treat the step's own
    loss. Logs ``distill/<loss>`` for each loss, unweighted, and ``distill/total``, what is back-propagated.

    The teacher is a copy in eval mode, never quantized or pruned, and no part of the module: neither its parameters
    nor its checkpoint have it. A teacher ``"self"`` is kept in the callback's state, so checkpoints grow by the
    student's float weights; of other teachers the state has a digest alone.

    Args:
        teacher: Path of a dense checkpoint or ``state_dict`` of the student's architecture (read with
            ``weights_only``); any module; or ``"self"`` or ``None`` for the student as the fit finds it, which should
            then be trained already. A module is copied and called with what the student's network is called with.
        losses: What is compared: ``Logits``, ``Features``, ``Attention``, ``Relations`` or own ``Loss`` objects, as a
            list or as the values of a mapping.
        task_weight: Factor of the loss that the step returns; 0 leaves the teacher's alone.
        start: When distillation begins. Before, and after ``end``, the step's loss is used as it is.
        end: When it ends; ``None`` with the run.
        module: Full name of the module that is the network, where the step calls several side by side.
        accept_changes: Go on from a checkpoint of other settings or of another teacher, with a warning that lists the
            differences, and not refuse it.

    Attributes:
        teacher: The frozen copy, from ``on_fit_start`` on.
        phases: ``start`` and, where given, ``end`` in optimizer steps.

    Raises:
        CompressionError: A setting is not allowed (at construction), does not fit the run (before training), or the
            networks cannot be compared (in the first step, also where ``start`` is later).

    Example:
        >>> KnowledgeDistillation("dense.ckpt", [Logits(temperature=2.0)], task_weight=0.5).losses[0].weight
        1.0
    """

    def __init__(
        self,
        teacher: str | os.PathLike[str] | nn.Module | None = None,
        losses: Sequence[Loss] | Mapping[str, Loss] = (Logits(),),
        *,
        task_weight: float = 1.0,
        start: TimePoint = 0,
        end: TimePoint | None = None,
        module: str | None = None,
        accept_changes: bool = False,
    ) -> None:
        super().__init__()
        self._accept_changes = check_accept(accept_changes, _FIELD)
        if not (teacher is None or isinstance(teacher, str | os.PathLike | nn.Module)):
            raise CompressionError.field(
                f"{_FIELD}.teacher", expected="the path of a checkpoint, a module, 'self' or None", got=teacher
            )
        if isinstance(task_weight, bool) or not isinstance(task_weight, int | float) or not 0 <= task_weight < math.inf:
            raise CompressionError.field(
                f"{_FIELD}.task_weight", expected="a finite number, at least 0", got=task_weight
            )
        self.losses = check_losses(losses, f"{_FIELD}.losses")
        self.task_weight = task_weight
        self.teacher: nn.Module | None = None
        self.phases: dict[str, int] = {}
        self._given = None if teacher == "self" else teacher
        self._module = module
        self._times = PhaseTimes({"start": start, "end": end}, _FIELD)
        self._student: weakref.ref[L.LightningModule] | None = None
        self._restored: dict[str, Any] | None = None
        self._distiller: Distiller | None = None
        self._digest = ""
        self._compared = False
        self._plateaus = PlateauSteps()
        self._epoch = EpochCount()

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # A state that came with an earlier trainer.test(ckpt_path=...) has nothing to do with this run.
        self._restored = None
        if stage != "fit":
            return
        refuse_sharded(trainer, _FIELD)
        if isinstance(self._given, str | os.PathLike) and not Path(self._given).is_file():
            raise CompressionError.field(
                f"{_FIELD}.teacher", expected="the path of a checkpoint", got=str(self._given), fix="There is no file."
            )

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not pl_module.automatic_optimization:
            raise CompressionError(
                f"{_FIELD}: {type(pl_module).__name__} optimizes manually, so it decides itself what is "
                "back-propagated. Use lightning_compress.distillation.Distiller in its training_step."
            )
        if self._restored is not None:
            self._epoch.steps = self._restored["epoch_steps"]
        self.phases = self._resolve(trainer, self._epoch.begin(trainer, self))
        self._take_teacher(trainer, pl_module)
        self._distiller = Distiller(
            pl_module,
            self._made,
            self.losses,
            task_weight=self.task_weight,
            module=self._module,
            field=_FIELD,
        )
        self._compared = False

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._plateaus.make(trainer)
        DistilledStep.install(self.distilled, trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        run = self._epoch.end_epoch(trainer)
        if run is not None:
            self.phases = self._resolve(trainer, run)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        DistilledStep.remove(pl_module)

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        DistilledStep.remove(pl_module)

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        DistilledStep.remove(pl_module)
        if self.teacher is not None:
            self.teacher.cpu()

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        correct_progress(trainer, checkpoint)
        self._plateaus.take(checkpoint)

    @override
    def state_dict(self) -> dict[str, Any]:
        if self.teacher is None:
            return {}
        kept = weights(self.teacher) if self._given is None else None
        return {
            "digest": self._digest,
            "teacher": kept,
            "settings": self._described(),
            "epoch_steps": self._epoch.steps,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict or None

    def __getstate__(self) -> dict[str, Any]:
        # Launchers that spawn processes pickle callbacks.
        return {**self.__dict__, "_student": None, "_distiller": None}

    @property
    def _made(self) -> nn.Module:
        if self.teacher is None:
            raise CompressionError(f"{_FIELD}: its teacher is made in on_fit_start, which has not run.")
        return self.teacher

    def active(self, step: int) -> bool:
        """Whether a training step is distilled.

        Args:
            step: Optimizer steps done before it.
        """
        return self.phases["start"] <= step < self.phases.get("end", step + 1)

    def distilled(self, step: MethodType, trainer: L.Trainer, module: L.LightningModule, args: Any, kwargs: Any) -> Any:
        """Run a training step and add what the teacher finds to the loss that it returns.

        Args:
            step: The module's own step.
            trainer: Whose step it is.
            module: The student.
            args: Of the step.
            kwargs: Likewise.

        Returns:
            What the step returned, with the total as its loss.
        """
        if self._distiller is None:
            return step(*args, **kwargs)
        # Watched in every step: compiled code keeps the hooks that were there when it was compiled, or lacks them.
        with self._distiller as distiller:
            output = step(*args, **kwargs)
        active = self.active(trainer.global_step)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        # Lightning skips a step without a loss. The first one is compared at any rate, so that networks that do not
        # fit are refused then; later ones need not run the network.
        if not isinstance(loss, Tensor) or (self._compared and not (active and distiller.called)):
            distiller.forget()
            return output
        terms = distiller.terms()
        self._compared = True
        if not active:
            return output
        total = distiller.total(loss, terms)
        module.log_dict({f"distill/{name}": value.detach() for name, value in terms.items()}, on_step=True)
        module.log("distill/total", total.detach(), on_step=True)
        return {**output, "loss": total} if isinstance(output, Mapping) else total

    def _resolve(self, trainer: L.Trainer, run: Run) -> dict[str, int]:
        phases = self._times.steps(run)
        self._times.refuse_before_start("end", phases)
        self._times.refuse_beyond({"start": phases["start"]}, trainer, run, "distillation")
        return phases

    def _take_teacher(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the teacher, or keep the one of an earlier fit of the same module."""
        saved, self._restored = self._restored, None
        field = f"{_FIELD}.teacher"
        known = self._student is not None and self._student() is pl_module
        self._student = weakref.ref(pl_module)
        if isinstance(self._given, nn.Module):
            refuse_shared(pl_module, self._given, field)
            teacher = frozen_copy(self._given)
        elif self._given is not None:
            teacher = from_file(pl_module, Path(self._given), field)
        elif saved is not None and saved["teacher"] is not None:
            teacher = from_state(pl_module, saved["teacher"], field)
        elif self.teacher is not None and known:
            teacher = self.teacher
        else:
            if trainer.ckpt_path is not None:
                rank_zero_warn(
                    f"{_FIELD}: the checkpoint has no teacher, so it is the module as the checkpoint holds it. If that "
                    "is compressed already, give teacher='dense.ckpt'."
                )
            teacher = frozen_copy(pl_module)
        teacher = trainer.precision_plugin.convert_module(teacher).to(pl_module.device)
        if trainer.world_size > 1:
            share(teacher)
        self.teacher, self._digest = teacher, digest(teacher)
        if saved is not None:
            settle(
                {**saved["settings"], "teacher": saved["digest"][:12]},
                {**self._described(), "teacher": self._digest[:12]},
                _FIELD,
                accept=self._accept_changes,
                fix="start a new fit from the weights alone",
            )

    def _described(self) -> dict[str, Any]:
        """Everything but the teacher that decides what is learned from it, as primitives."""
        return {
            **{f"losses[{place}]": described(loss) for place, loss in enumerate(self.losses)},
            **self.phases,
            "task_weight": self.task_weight,
            "module": self._module,
        }
