"""Every mistake of ``bad_configurations.yaml`` is refused in words, before the first training step."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning_modules import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_compress import (
    CompressedExport,
    CompressionError,
    GradualMagnitudePruning,
    KnowledgeDistillation,
    QuantizationAwareTraining,
)
from lightning_compress.cli.main import main

CASES: list[dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_suffix(".yaml").with_stem("bad_configurations").read_text()
)
CALLBACKS: dict[str, tuple[type[L.Callback], dict[str, Any]]] = {
    "pruning": (GradualMagnitudePruning, {"final_sparsity": 0.8, "start": 2, "end": 8, "every": 2}),
    "quantization": (QuantizationAwareTraining, {}),
    "distillation": (KnowledgeDistillation, {}),
    "export": (CompressedExport, {"dirpath": "out"}),
}
OWN = [case for case in CASES if "train" not in case]
COMMANDS = [case for case in CASES if "train" in case]


class Module(L.LightningModule):
    """Counts its training steps."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.steps += 1
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        while True:
            yield torch.randn(6), torch.tensor(1)


def name(case: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in case.items() if key not in ("field", "says"))


def loader(case: dict[str, Any]) -> DataLoader[Any]:
    if case.get("trainer", {}).get("max_epochs") == -1:
        return DataLoader(Endless(), batch_size=4)
    return DataLoader(TensorDataset(torch.randn(32, 6), torch.randint(0, 2, (32,))), batch_size=4)


@pytest.mark.parametrize("case", OWN, ids=name)
def test_a_bad_setting_of_a_callback_is_refused(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module = Module()
    kind, defaults = next(CALLBACKS[key] for key in CALLBACKS if key in case)
    settings = next(case[key] for key in CALLBACKS if key in case)

    def fit() -> None:
        callback = kind(**{**defaults, **settings})
        quiet_trainer(callbacks=[callback], **case.get("trainer", {})).fit(module, loader(case), loader({}))

    with pytest.raises(CompressionError) as error:
        fit()
    message = str(error.value)
    assert message.startswith(case["field"]), message
    assert case["says"] in message
    assert module.steps == 0
    raised = traceback.extract_tb(error.value.__traceback__)[-1].filename
    assert "lightning_compress" in raised, "no error of torch in other clothes"


@pytest.mark.parametrize("case", COMMANDS, ids=name)
def test_a_bad_override_of_the_command_is_refused(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stepped(*args: Any) -> None:
        raise AssertionError("a training step ran")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning_compress.models.Classifier.training_step", stepped)
    quick = ["trainer.enable_progress_bar=false", "threads=1"]
    if not any("trainer.accelerator" in text for text in case["train"]):
        quick.append("trainer.accelerator=cpu")
    assert main(["train", *quick, *case["train"]]) == 2
    printed = capsys.readouterr().err
    message = printed.rpartition("error: ")[2] if "error: " in printed else printed
    assert message.startswith(case["field"]), printed
    assert case["says"] in message
    assert "Traceback" not in printed


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60
    assert len({name(case) for case in CASES}) == len(CASES)
