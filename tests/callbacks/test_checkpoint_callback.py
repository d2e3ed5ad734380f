"""Checkpoints that count as best only once the model is compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning_modules import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import (
    CompressedCheckpoint,
    CompressionMonitor,
    GradualMagnitudePruning,
    QuantizationAwareTraining,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*(does not have many workers|not empty|logging interval)")


class Worsening(L.LightningModule):
    """Scores best at first, as a model does that is not compressed yet."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log("train/score", self._score(), on_step=False, on_epoch=True)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0])
        self.log("val/score", self._score())

    def _score(self) -> torch.Tensor:
        return torch.tensor(-float(self.trainer.global_step))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class EveryStep(Worsening):
    """Logs its score in every step."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log("train/score", self._score())
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


def loader() -> DataLoader[Any]:
    x = torch.randn(16, 4)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=4)


def fit(checkpoint: Callback, *others: Callback, **settings: Any) -> L.Trainer:
    """Four steps an epoch, four epochs; sparsity and bits are live from optimizer step 6 on."""
    trainer = quiet_trainer(callbacks=[*others, checkpoint], enable_checkpointing=True, max_epochs=4, **settings)
    trainer.fit(Worsening(), loader(), loader())
    return trainer


def compression() -> list[Callback]:
    return [GradualMagnitudePruning(0.5, start=2, end=6, every=2), QuantizationAwareTraining(start=5)]


def steps(path: str) -> int:
    return int(torch.load(path, weights_only=True)["global_step"])


def test_a_dense_epoch_is_never_the_best(tmp_path: Path) -> None:
    plain = ModelCheckpoint(tmp_path / "plain", monitor="val/score", mode="max")
    fit(plain, *compression())
    assert steps(plain.best_model_path) == 4, "what this is to prevent"
    ours = CompressedCheckpoint(tmp_path / "ours", monitor="val/score", mode="max")
    fit(ours, *compression())
    assert steps(ours.best_model_path) == 8
    assert ours.best_model_score == -8


@pytest.mark.parametrize("late", ["sparsity", "bits"])
def test_both_sparsity_and_bits_are_waited_for(tmp_path: Path, late: str) -> None:
    prune = GradualMagnitudePruning(0.5, start=2, end=10 if late == "sparsity" else 4, every=2)
    quantize = QuantizationAwareTraining(start=10 if late == "bits" else 1)
    checkpoint = CompressedCheckpoint(tmp_path, monitor="val/score", mode="max")
    fit(checkpoint, prune, quantize)
    assert steps(checkpoint.best_model_path) == 12


def test_a_value_measured_before_compression_was_live_does_not_count(tmp_path: Path) -> None:
    checkpoint = CompressedCheckpoint(tmp_path, monitor="val/score", mode="max", every_n_train_steps=1, save_top_k=1)
    fit(checkpoint, *compression())
    # At steps 6 and 7 the newest value is that of the validation at step 4.
    assert checkpoint.best_model_score == -8
    assert steps(checkpoint.best_model_path) >= 8


def test_a_mean_over_a_training_epoch_counts_if_all_of_the_epoch_was_live(tmp_path: Path) -> None:
    checkpoint = CompressedCheckpoint(tmp_path, monitor="train/score", mode="max", save_on_train_epoch_end=True)
    fit(checkpoint, *compression())
    # The epoch from step 4 to 8 was compressed for its last two steps alone.
    assert steps(checkpoint.best_model_path) == 12


def test_all_top_k_are_compressed(tmp_path: Path) -> None:
    checkpoint = CompressedCheckpoint(tmp_path, monitor="val/score", mode="max", save_top_k=3)
    fit(checkpoint, *compression())
    assert sorted(map(steps, checkpoint.best_k_models)) == [8, 12, 16]


def test_a_run_that_was_never_live_is_told_so(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.should_stop = True

    checkpoint = CompressedCheckpoint(tmp_path, monitor="val/score", mode="max", save_last=True)
    with pytest.warns(UserWarning, match="no checkpoint was kept as best by 'val/score'"):
        fit(checkpoint, *compression(), Stop())
    assert checkpoint.best_model_path == ""


def test_a_checkpoint_to_resume_from_is_written_at_any_time(tmp_path: Path) -> None:
    newest = CompressedCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    fit(newest, *compression())
    assert (tmp_path / "step=2.ckpt").exists()


def test_without_compression_it_is_lightnings_checkpoint(tmp_path: Path) -> None:
    checkpoint = CompressedCheckpoint(tmp_path, monitor="val/score", mode="max")
    fit(checkpoint)
    assert steps(checkpoint.best_model_path) == 4


@pytest.mark.parametrize(
    ("every", "settings"),
    [
        (4, {"val_check_interval": 0.5}),
        (8, {"check_val_every_n_epoch": 2}),
        (4, {"save_on_train_epoch_end": False}),
    ],
)
def test_without_compression_it_saves_what_lightning_saves(
    every: int, settings: dict[str, Any], tmp_path: Path
) -> None:
    own = {key: settings[key] for key in settings if key.startswith("save")}
    kept = []
    for kind in (ModelCheckpoint, CompressedCheckpoint):
        folder = tmp_path / kind.__name__
        checkpoint = kind(
            folder,
            filename="{step}",
            monitor="val/score",
            mode="max",
            every_n_train_steps=every,
            save_top_k=-1,
            **own,
        )
        fit(checkpoint, **{key: settings[key] for key in settings if key not in own})
        kept.append((sorted(path.name for path in folder.iterdir()), Path(checkpoint.best_model_path).name))
    assert kept[0] == kept[1]
    assert len(kept[0][0]) == 16 // every


def test_a_run_that_goes_on_inside_an_epoch_that_was_live_keeps_its_best(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"filename": "{step}", "monitor": "train/score", "mode": "max", "every_n_train_steps": 3}
    for folder, start in (("whole", None), ("resumed", tmp_path / "whole" / "step=9.ckpt")):
        checkpoint = CompressedCheckpoint(tmp_path / folder, save_top_k=-1, **settings)
        trainer = quiet_trainer(callbacks=[*compression(), checkpoint], enable_checkpointing=True, max_epochs=3)
        trainer.fit(EveryStep(), loader(), ckpt_path=start)
    assert [path.name for path in (tmp_path / "resumed").iterdir()] == ["step=12.ckpt"]


def test_the_best_of_a_resumed_run_is_compressed(tmp_path: Path) -> None:
    saver = CompressedCheckpoint(tmp_path / "a", filename="{step}", every_n_train_steps=4, save_top_k=-1)
    fit(saver, *compression())
    checkpoint = CompressedCheckpoint(tmp_path / "b", monitor="val/score", mode="max")
    trainer = quiet_trainer(callbacks=[*compression(), checkpoint], enable_checkpointing=True, max_epochs=4)
    trainer.fit(Worsening(), loader(), loader(), ckpt_path=tmp_path / "a" / "step=4.ckpt")
    assert steps(checkpoint.best_model_path) == 8


def test_readiness_is_logged(tmp_path: Path) -> None:
    class Read(Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            found.append(float(trainer.callback_metrics["compress/ready"]))

    found: list[float] = []
    fit(CompressedCheckpoint(tmp_path), *compression(), CompressionMonitor(), Read())
    assert found == [0, 1, 1, 1]
