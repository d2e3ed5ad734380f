"""Little projects of other people: their own files, to which ours are added."""

from __future__ import annotations

from pathlib import Path

MODULE = """
import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Digits(L.LightningDataModule):
    def __init__(self, batch_size: int = 64):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage):
        found = load_digits()
        x, y = torch.tensor(found.data, dtype=torch.float32) / 16, torch.tensor(found.target)
        self.parts = [TensorDataset(x[a:b], y[a:b]) for a, b in ((0, 640), (640, 768), (768, 896))]

    def train_dataloader(self):
        return DataLoader(self.parts[0], self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.parts[1], 128)

    def test_dataloader(self):
        return DataLoader(self.parts[2], 128)


class Classifier(L.LightningModule):
    def __init__(self, width: int = 32, lr: float = 0.01):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x):
        return self.net(x)

    def step(self, batch, part):
        x, y = batch
        scores = self(x)
        loss = nn.functional.cross_entropy(scores, y)
        self.log_dict({f"{part}/loss": loss, f"{part}/acc": (scores.argmax(1) == y).float().mean()})
        return loss

    def training_step(self, batch, batch_idx):
        return self.step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self.step(batch, "val")

    def test_step(self, batch, batch_idx):
        self.step(batch, "test")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), self.hparams.lr)
"""

OWN_HYDRA_APPLICATION = {
    "project.py": MODULE,
    "train.py": """
import hydra
import lightning as L
from hydra.utils import instantiate


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    L.seed_everything(0)
    callbacks = [instantiate(cfg[name]) for name in ("pruning", "quantization", "export")]
    trainer = L.Trainer(max_epochs=4, accelerator="cpu", logger=False, callbacks=callbacks, enable_checkpointing=False)
    trainer.fit(instantiate(cfg.model), instantiate(cfg.data))


main()
""",
    "conf/config.yaml": """
defaults:
  - pruning: erk
  - quantization: w8a8
  - export: default
  - _self_

model: {_target_: project.Classifier, width: 32}
data: {_target_: project.Digits}
export: {latency: false}

hydra:
  searchpath: [pkg://lightning_compress.conf]
  run: {dir: out}
""",
}
"""A project with its own entry point, which takes our groups by ``hydra.searchpath``."""

TEMPLATE = {
    "src/__init__.py": "",
    "src/project.py": MODULE,
    "src/train.py": """
import hydra
import lightning as L
from omegaconf import DictConfig


def instantiate_callbacks(callbacks_cfg):
    callbacks = []
    for _, node in callbacks_cfg.items():
        if isinstance(node, DictConfig) and "_target_" in node:
            callbacks.append(hydra.utils.instantiate(node))
    return callbacks


@hydra.main(version_base="1.3", config_path="../configs", config_name="train.yaml")
def main(cfg):
    L.seed_everything(cfg.seed, workers=True)
    datamodule = hydra.utils.instantiate(cfg.data)
    model = hydra.utils.instantiate(cfg.model)
    callbacks = instantiate_callbacks(cfg.get("callbacks"))
    trainer = hydra.utils.instantiate(cfg.trainer, callbacks=callbacks, logger=False)
    trainer.fit(model=model, datamodule=datamodule, ckpt_path=cfg.get("ckpt_path"))
    metrics = dict(trainer.callback_metrics)
    trainer.test(model=model, datamodule=datamodule, ckpt_path=trainer.checkpoint_callback.best_model_path)
    return float({**metrics, **trainer.callback_metrics}[cfg.optimized_metric])


main()
""",
    "configs/train.yaml": """
defaults:
  - _self_
  - data: digits
  - model: digits
  - callbacks: default
  - trainer: default
  - paths: default
  - hydra: default

seed: 12345
ckpt_path: null
optimized_metric: val/acc
""",
    "configs/data/digits.yaml": "_target_: src.project.Digits\nbatch_size: 64\n",
    "configs/model/digits.yaml": "_target_: src.project.Classifier\nwidth: 32\n",
    "configs/trainer/default.yaml": (
        "_target_: lightning.pytorch.trainer.Trainer\ndefault_root_dir: ${paths.output_dir}\nmin_epochs: 1\n"
        "max_epochs: 4\naccelerator: cpu\ndevices: 1\n"
    ),
    "configs/paths/default.yaml": "output_dir: ${hydra:runtime.output_dir}\n",
    "configs/hydra/default.yaml": "run: {dir: out}\n",
    "configs/callbacks/default.yaml": "defaults: [model_checkpoint, early_stopping, _self_]\n",
    "configs/callbacks/model_checkpoint.yaml": """
model_checkpoint:
  _target_: lightning.pytorch.callbacks.ModelCheckpoint
  dirpath: ${paths.output_dir}/checkpoints
  monitor: val/acc
  mode: max
  save_last: true
""",
    "configs/callbacks/early_stopping.yaml": """
early_stopping:
  _target_: lightning.pytorch.callbacks.EarlyStopping
  monitor: val/acc
  patience: 100
  mode: max
""",
}
"""A project in the shape of ashleve/lightning-hydra-template."""

ADDED_TO_THE_TEMPLATE = {
    "configs/callbacks/compress.yaml": """
defaults: [default, _self_]

pruning:
  _target_: lightning_compress.GradualMagnitudePruning
  final_sparsity: 0.8
  every: 2
  ignore: ["net.2"]
quantization:
  _target_: lightning_compress.QuantizationAwareTraining
  overrides:
    net.2: {weight_bits: 4}
monitor:
  _target_: lightning_compress.CompressionMonitor
export:
  _target_: lightning_compress.CompressedExport
  dirpath: ${paths.output_dir}/compressed
  formats: [onnx, packed]
  latency: false
""",
}
"""The one file by which such a project compresses its model: ``python src/train.py callbacks=compress``."""

CLI_PROJECT = {
    "project.py": MODULE,
    "train.py": """
from lightning.pytorch.cli import LightningCLI

from project import Classifier, Digits

LightningCLI(Classifier, Digits, save_config_callback=None)
""",
    "config.yaml": """
seed_everything: 0
trainer:
  accelerator: cpu
  max_epochs: 4
  logger: false
  enable_checkpointing: false
  callbacks:
    - class_path: lightning_compress.GradualMagnitudePruning
      init_args: {final_sparsity: 0.8, every: 2}
    - class_path: lightning_compress.QuantizationAwareTraining
      init_args: {weight_bits: 4, overrides: {net.2: {weight_bits: 8}}}
    - class_path: lightning_compress.CompressionMonitor
    - class_path: lightning_compress.CompressedExport
      init_args: {dirpath: compressed, formats: [onnx, packed], latency: false}
model: {width: 32}
""",
}
"""A project of LightningCLI, with callbacks by ``class_path``."""


def write(folder: Path, *parts: dict[str, str]) -> Path:
    """Write files, and return the folder."""
    for part in parts:
        for name, content in part.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content.removeprefix("\n"))
    return folder
