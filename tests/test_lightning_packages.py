"""The callbacks under both packages of Lightning, whose classes are not each other's."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import (
    CompressedExport,
    CompressionError,
    CompressionMonitor,
    GradualMagnitudePruning,
    KnowledgeDistillation,
    QuantizationAwareTraining,
)
from lightning_compress import callbacks as ours
from lightning_compress.callbacks import pytorch_lightning as ours_for_pytorch_lightning
from lightning_compress.callbacks.run_length import refuse_sharded
from lightning_compress.lightning_packages import is_instance, is_overridden, package_of, refuse_mixed

PACKAGES = [lightning.pytorch, pytorch_lightning]
CHECKPOINTS = {
    "lightning.pytorch": ours.CompressedCheckpoint,
    "pytorch_lightning": ours_for_pytorch_lightning.CompressedCheckpoint,
}


def of_package(package: ModuleType) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("package", [package], ids=lambda one: one.__name__)


both = pytest.mark.parametrize("package", PACKAGES, ids=lambda one: one.__name__)


def module_of(package: ModuleType, dtype: torch.dtype = torch.float32) -> Any:
    class Module(package.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
            self.batches_seen = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.batches_seen += 1

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, _: int) -> None:
            self.log("val/acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    torch.manual_seed(0)
    return Module()


def loader() -> DataLoader:
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), 8)


def trainer_of(package: ModuleType, *callbacks: Any, **settings: Any) -> Any:
    return package.Trainer(
        **{
            "max_epochs": 3,
            "accelerator": "cpu",
            "callbacks": list(callbacks),
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **settings,
        }
    )


def all_callbacks(folder: Path, **export: Any) -> list[Any]:
    return [
        GradualMagnitudePruning(final_sparsity=0.5, end=0.5, every=1),
        QuantizationAwareTraining(),
        KnowledgeDistillation("self"),
        CompressionMonitor(print_phases=False),
        CompressedExport(folder / "out", **{"formats": ["packed"], "latency": False, **export}),
    ]


def fitted(package: ModuleType, folder: Path, *more: Any, **settings: Any) -> tuple[Any, Any]:
    trainer, module = trainer_of(package, *all_callbacks(folder), *more, **settings), module_of(package)
    trainer.fit(module, loader(), loader())
    return trainer, module


@both
def test_every_callback_works_and_all_files_are_written(package, tmp_path):
    logger = package.loggers.CSVLogger(tmp_path / "logs")
    _, module = fitted(package, tmp_path, logger=logger)
    assert sum(int((module.net[place].weight == 0).sum()) for place in (0, 2)) == (6 * 16 + 16 * 3) // 2
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [item["format"] for item in report["artifacts"]] == ["packed"]
    assert set(report["results"]["deployed"]["metrics"]) == {"val/acc"}
    # What loggers of both packages get by their class.
    assert (Path(logger.log_dir) / "compress_plan.json").is_file()


def test_both_packages_train_to_the_same_weights_and_report(tmp_path):
    found = [fitted(package, tmp_path / package.__name__) for package in PACKAGES]
    for mine, theirs in zip(found[0][1].parameters(), found[1][1].parameters(), strict=True):
        assert torch.equal(mine, theirs)
    reports = [json.loads((tmp_path / p.__name__ / "out/report.json").read_text()) for p in PACKAGES]
    assert reports[0]["results"] == reports[1]["results"]


@of_package(pytorch_lightning)
def test_graphs_are_written_and_verified_in_double_precision(package, tmp_path):
    module = module_of(package)
    callbacks = [QuantizationAwareTraining(), CompressedExport(tmp_path / "out", ["onnx"], latency=False)]
    x = torch.randn(32, 6).double()
    data = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), 8)
    trainer_of(package, *callbacks, precision="64-true").fit(module, data, data)
    report = callbacks[1].report
    assert report is not None
    assert report["agreement"] == 1.0


@both
def test_a_best_checkpoint_is_a_checkpoint_callback_of_its_trainer(package, tmp_path):
    checkpoint = CHECKPOINTS[package.__name__](tmp_path / "kept", monitor="val/acc", mode="max")
    trainer, _ = fitted(package, tmp_path, checkpoint, enable_checkpointing=True)
    assert trainer.checkpoint_callback is checkpoint
    assert trainer.callbacks[-1] is checkpoint
    assert Path(checkpoint.best_model_path).is_file()


@both
def test_a_checkpoint_callback_of_the_other_package_is_refused_with_the_right_one(package, tmp_path):
    other = CHECKPOINTS[next(name for name in CHECKPOINTS if name != package.__name__)]
    right = CHECKPOINTS[package.__name__].__module__.removesuffix(".checkpoint")
    with pytest.raises(CompressionError, match=f"{right}\\.$"):
        fitted(package, tmp_path, other(tmp_path / "kept"))


@both
def test_averaged_weights_after_pruning_are_refused(package, tmp_path):
    with pytest.raises(CompressionError, match="list EMAWeightAveraging before it"):
        fitted(package, tmp_path, package.callbacks.EMAWeightAveraging())


@both
def test_strategies_are_known_by_what_a_process_holds(package):
    refuse_sharded(SimpleNamespace(strategy=package.strategies.DDPStrategy()), "field")
    sharded = SimpleNamespace(strategy=package.strategies.ModelParallelStrategy())
    with pytest.raises(CompressionError, match="a single device or DDP, got 'ModelParallelStrategy'"):
        refuse_sharded(sharded, "field")


@both
def test_a_run_goes_on_from_its_checkpoint_to_the_same_weights(package, tmp_path):
    class Keeps(package.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    whole = fitted(package, tmp_path / "whole", Keeps())[1]
    again = module_of(package)
    resumed = trainer_of(package, *all_callbacks(tmp_path / "again"))
    resumed.fit(again, loader(), loader(), ckpt_path=tmp_path / "1.ckpt")
    for mine, theirs in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@both
def test_what_an_object_is_does_not_depend_on_its_package(package):
    module = module_of(package)
    assert package_of(module) is package
    assert is_instance(module, lightning.pytorch.LightningModule)
    assert not is_instance(module, lightning.pytorch.LightningDataModule)
    assert is_instance(package.loggers.CSVLogger("."), lightning.pytorch.loggers.CSVLogger)
    assert is_overridden("validation_step", module, lightning.pytorch.LightningModule)
    assert not is_overridden("test_step", module, lightning.pytorch.LightningModule)


def test_a_module_of_one_package_under_a_trainer_of_the_other_is_refused():
    with pytest.raises(CompressionError, match="model: expected a class of pytorch_lightning, as the Trainer is"):
        refuse_mixed(trainer_of(pytorch_lightning), module_of(lightning.pytorch), "model")
