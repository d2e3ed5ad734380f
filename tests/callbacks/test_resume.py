"""Going on from checkpoints: which batches are trained, and with which settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning_modules import PlainModule, loader, quiet_trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import (
    CompressedCheckpoint,
    CompressionError,
    GradualMagnitudePruning,
    KnowledgeDistillation,
    QuantizationAwareTraining,
)
from lightning_compress.callbacks.checkpoints.progress import correct_progress
from lightning_compress.distillation import Logits

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(many workers|not empty|ended before the epoch|dirpath has changed|Be aware)"
)
BATCHES = 4
LENGTHS = {"epochs": {"max_epochs": 3}, "steps": {"max_epochs": -1, "max_steps": 3 * BATCHES}}


class Listed(L.LightningModule):
    """Lists what it is asked to do: epochs that begin and end, the number in each batch, validations."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(2, 2)
        self.done: list[str] = []

    def on_train_epoch_start(self) -> None:
        self.done.append(f"begin {self.current_epoch}")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.done.append(f"batch {int(batch[0][0, 0])}")
        return self.net(batch[0]).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.done.append("validate")

    def on_train_epoch_end(self) -> None:
        self.done.append(f"end {self.current_epoch}")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Numbered(DataLoader[Any]):
    """Batches 0 to 3, from where a checkpoint was written."""

    place = 0

    def __init__(self) -> None:
        super().__init__(TensorDataset(torch.arange(float(BATCHES)).repeat(2, 1).T), batch_size=1)

    def __iter__(self) -> Any:
        first, self.place = self.place, 0
        for index, batch in enumerate(super().__iter__()):
            if index >= first:
                self.place = (index + 1) % BATCHES
                yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


class Stop(Callback):
    """An exception before a batch."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise InterruptedError


def listed(
    length: str, ours: list[Callback], saver: Callback, path: Path | None = None, *, validates: bool, stop: int = -1
) -> tuple[list[str], int]:
    """What a fit does, and the step that its loggers are at."""
    module = Listed()
    trainer = quiet_trainer(
        callbacks=[*ours, saver, Stop(stop)], enable_checkpointing=True, num_sanity_val_steps=0, **LENGTHS[length]
    )
    try:
        trainer.fit(module, Numbered(), Numbered() if validates else None, ckpt_path=path)
    except InterruptedError:
        assert trainer.global_step == stop
    return module.done, trainer.fit_loop.epoch_loop._batches_that_stepped


def each_step(folder: Path, kind: type[ModelCheckpoint] = ModelCheckpoint) -> ModelCheckpoint:
    return kind(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, enable_version_counter=False)


def each_epoch(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="{step}", save_top_k=-1, enable_version_counter=False)


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("saver", [each_step, each_epoch])
def test_a_run_that_is_stopped_twice_trains_every_batch_once(
    tmp_path: Path, saver: Any, length: str, validates: bool
) -> None:
    # Without our callbacks, Lightning trains batches twice or one batch too many, see `correct_progress`.
    ours: list[Callback] = [QuantizationAwareTraining()]
    whole, logged = listed(length, ours, saver(tmp_path / "whole"), validates=validates)
    rest = whole[whole.index("begin 1") :]
    first = tmp_path / "whole" / f"step={BATCHES}.ckpt"
    stopped, _ = listed(length, ours, each_step(tmp_path / "again"), first, validates=validates, stop=6)
    assert stopped == rest[:3]
    again = tmp_path / "again" / "step=6.ckpt"
    assert listed(length, ours, each_step(tmp_path / "end"), again, validates=validates) == (rest[3:], logged)


@pytest.mark.parametrize("length", LENGTHS)
def test_our_checkpoint_of_a_last_batch_has_its_validation_and_the_end_of_its_epoch(
    tmp_path: Path, length: str
) -> None:
    class Order(CompressedCheckpoint):
        def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
            trainer.lightning_module.done.append("save")
            super()._save_checkpoint(trainer, filepath)

    done, _ = listed(length, [], each_step(tmp_path, Order), validates=True)
    epoch = done[: done.index("begin 1")]
    assert epoch == ["begin 0", *(x for i in range(3) for x in (f"batch {i}", "save")), "batch 3",
                     *["validate"] * 4, "end 0", "save"]  # fmt: skip


def test_counters_between_two_epochs_are_left_as_they_are(tmp_path: Path) -> None:
    listed("epochs", [], each_step(tmp_path), validates=False)
    saved = torch.load(tmp_path / f"step={BATCHES}.ckpt", weights_only=True)
    trainer = quiet_trainer(max_epochs=3)
    trainer.state.fn = "fit"
    correct_progress(trainer, saved)
    once = repr(saved["loops"])
    correct_progress(trainer, saved)
    assert repr(saved["loops"]) == once


def test_a_finished_run_that_is_resumed_stays_quantized(tmp_path: Path) -> None:
    trainer = quiet_trainer(callbacks=[QuantizationAwareTraining(weight_bits=2, start=4)], max_epochs=1)
    trainer.fit(PlainModule(), loader())
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    expected = trainer.validate(trainer.model, loader(2), verbose=False)
    again = quiet_trainer(callbacks=[QuantizationAwareTraining(weight_bits=2, start=4)], max_epochs=1)
    module = PlainModule()
    again.fit(module, loader(), ckpt_path=tmp_path / "end.ckpt")
    assert again.validate(module, loader(2), verbose=False) == expected


def pruning(**settings: Any) -> GradualMagnitudePruning:
    return GradualMagnitudePruning(**{"final_sparsity": 0.5, "start": 1, "end": 4, "every": 1, **settings})


def saved_by(callback: Callback, folder: Path, step: int = 8) -> Path:
    """A checkpoint of the middle of a run of 16 steps."""
    trainer = quiet_trainer(callbacks=[callback], max_epochs=1)
    trainer.fit(PlainModule(), loader())
    trainer.save_checkpoint(folder / "half.ckpt")
    return folder / "half.ckpt"


def go_on(callback: Callback, path: Path, **settings: Any) -> PlainModule:
    module = PlainModule()
    quiet_trainer(**{"callbacks": [callback], **settings}).fit(module, loader(), ckpt_path=path)
    return module


KINDS: dict[str, tuple[Any, dict[str, Any], dict[str, Any], str]] = {
    "sparsity": (pruning, {}, {"final_sparsity": 0.8}, "final_sparsity was 0.5, now 0.8"),
    "schedule": (pruning, {}, {"end": 12}, "end was 4, now 12"),
    "bits": (QuantizationAwareTraining, {}, {"weight_bits": 4}, "weight_bits was 8, now 4"),
    "phase": (QuantizationAwareTraining, {"start": 4}, {"start": 10}, "start was 4, now 10"),
    "learning rate": (QuantizationAwareTraining, {}, {"range_lr": 0.1}, "range_lr was 0.001, now 0.1"),
    "loss": (
        KnowledgeDistillation, {}, {"losses": [Logits(temperature=2.0)]},
        r'losses\[0\] was \'Logits {"temperature": 4.0.*now \'Logits {"temperature": 2.0',
    ),
    "task": (KnowledgeDistillation, {}, {"task_weight": 0.5}, "task_weight was 1.0, now 0.5"),
    "distillation": (KnowledgeDistillation, {"end": 6}, {"end": 12}, "end was 6, now 12"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "before", "after", "message"), KINDS.values(), ids=KINDS.keys())
def test_other_settings_are_refused_with_the_differences_or_accepted_and_said(
    tmp_path: Path, kind: Any, before: dict[str, Any], after: dict[str, Any], message: str
) -> None:
    path = saved_by(kind(**before), tmp_path)
    with pytest.raises(CompressionError, match=f"made with other settings: {message}.*accept_changes=True"):
        go_on(kind(**{**before, **after}), path)
    with pytest.warns(UserWarning, match=f"goes on with other settings than the checkpoint's: {message}"):
        go_on(kind(**{**before, **after}, accept_changes=True), path)


@pytest.mark.filterwarnings("ignore:.*goes on with other settings")
class TestAccepted:
    def test_a_higher_sparsity_is_reached_and_what_was_pruned_stays_so(self, tmp_path: Path) -> None:
        before, after = pruning(), pruning(final_sparsity=0.8, end=12, accept_changes=True)
        path = saved_by(before, tmp_path)
        go_on(after, path)
        assert after.pruner.sparsity() == pytest.approx(0.8, abs=1e-3)
        for name, mask in before.pruner.masks.items():
            assert not after.pruner.masks[name][~mask].any()

    def test_a_schedule_that_is_over_already_takes_effect_at_once(self, tmp_path: Path) -> None:
        after = pruning(final_sparsity=0.8, accept_changes=True)
        go_on(after, saved_by(pruning(), tmp_path))
        assert after.pruner.sparsity() == pytest.approx(0.8, abs=1e-3)

    @pytest.mark.parametrize("criterion", ["taylor", "movement"])
    def test_criteria_that_look_at_gradients_wait_for_them(self, tmp_path: Path, criterion: Any) -> None:
        after = pruning(criterion=criterion, final_sparsity=0.8, accept_changes=True)
        go_on(after, saved_by(pruning(), tmp_path))
        assert after.pruner.sparsity() == pytest.approx(0.8, abs=1e-3)

    def test_layers_that_are_no_target_any_more_are_left_alone(self, tmp_path: Path) -> None:
        after = pruning(ignore=["net.fc"], accept_changes=True)
        module = go_on(after, saved_by(pruning(), tmp_path))
        assert "net.fc.weight" not in after.pruner.masks
        assert (module.net.fc.weight != 0).all()
        assert after.pruner.sparsity() == pytest.approx(0.5, abs=1e-2)

    def test_other_bits_learn_their_ranges_again(self, tmp_path: Path) -> None:
        after = QuantizationAwareTraining(weight_bits=4, activation_bits=4, accept_changes=True)
        go_on(after, saved_by(QuantizationAwareTraining(), tmp_path))
        assert after.quantization.layers["net.block1.conv1.weight"].spec.bits == 4
        assert after.quantization.activations["net.block1:output"].bits == 4
        assert all(q.observed for q in after.quantization.activations.values())

    def test_ranges_that_could_not_be_learned_again_are_refused(self, tmp_path: Path) -> None:
        after = QuantizationAwareTraining(weight_bits=4, freeze_range=6, accept_changes=True)
        path = saved_by(QuantizationAwareTraining(freeze_range=6), tmp_path)
        with pytest.raises(CompressionError, match="freeze_range: expected a point after optimizer step 8"):
            go_on(after, path)

    def test_a_later_start_keeps_quantizers_and_ranges(self, tmp_path: Path) -> None:
        before = QuantizationAwareTraining(start=4)
        after = QuantizationAwareTraining(start=15, accept_changes=True)
        path = saved_by(before, tmp_path)
        with pytest.raises(InterruptedError):
            go_on(after, path, callbacks=[after, Stop(12)])
        ranges = {name: q.range for name, q in before.quantization.activations.items()}
        assert all(torch.equal(q.range, ranges[name]) for name, q in after.quantization.activations.items())


@pytest.mark.parametrize("kind", [pruning, QuantizationAwareTraining, KnowledgeDistillation])
def test_whether_changes_are_accepted_is_true_or_false(kind: Any) -> None:
    with pytest.raises(CompressionError, match=r"accept_changes: expected true or false, got 'yes'"):
        kind(accept_changes="yes")


class Plateau(PlainModule):
    """Lowers its learning rate whenever a validation is no better by a lot."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.05)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=10.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}


def pruning_a_little() -> GradualMagnitudePruning:
    return GradualMagnitudePruning(0.5, start=0, end=6, every=2)


@pytest.mark.parametrize(
    ("callback", "saved"),
    [
        (pruning_a_little, "train epoch end"),
        (pruning_a_little, "validation"),
        (QuantizationAwareTraining, "train epoch end"),
        (lambda: KnowledgeDistillation("self"), "train epoch end"),
    ],
)
def test_learning_rates_on_a_plateau_go_on_as_in_the_whole_run(tmp_path, callback, saved):
    def run(folder: Path, resume: Path | None = None) -> tuple[Plateau, float]:
        torch.manual_seed(0)
        module = Plateau()
        keep = ModelCheckpoint(
            folder,
            filename="{epoch}",
            every_n_epochs=1,
            save_top_k=-1,
            save_on_train_epoch_end=saved == "train epoch end",
        )
        trainer = quiet_trainer(max_epochs=4, callbacks=[keep, callback()], enable_checkpointing=True)
        trainer.fit(module, loader(3), loader(2, seed=1), ckpt_path=resume)
        return module, trainer.optimizers[0].param_groups[0]["lr"]

    whole, rate = run(tmp_path / "whole")
    again, same = run(tmp_path / "again", tmp_path / "whole/epoch=1.ckpt")
    assert same == rate
    for mine, theirs in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)
