from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from lightning_compress.apps.calibrate.verdict import judge
from lightning_compress.cli.main import main
from lightning_compress.errors import CompressionError
from lightning_compress.export.packed.reader import PackedReader

OWN = """
import lightning as L, torch
from torch import nn

class Own(L.LightningModule):
    def __init__(self, hidden, lr=0.1):
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
                                 nn.Dropout(0.5), nn.Linear(hidden, 10))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        scores = self.net(batch[0])
        self.log("test/acc", (scores.argmax(1) == batch[1]).float().mean())
        self.log("test/loss", nn.functional.cross_entropy(scores, batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)
"""
MODEL = (
    "model=custom", "model._target_=calibrated_module.Own", "+model.hidden=32", "trainer.accelerator=cpu", "threads=1",
    "export.latency=false",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's, trained elsewhere, in the working directory."""
    (tmp_path / "calibrated_module.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "calibrated_module", raising=False)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)
    )
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net((x - 0.3) / 0.37), y).backward()
        optimizer.step()
    torch.save({"state_dict": {f"net.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "dense.ckpt")


def calibrated(capsys: pytest.CaptureFixture[str], *given: str, code: int = 0) -> dict[str, Any]:
    """What ``calibrate --json`` prints."""
    capsys.readouterr()
    assert main(["calibrate", "--json", "--checkpoint", "dense.ckpt", *given, *MODEL]) == code
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_a_users_checkpoint_is_quantized_written_and_judged_without_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = calibrated(capsys, "--batches", "4")
    assert result["batches"] == 4
    verdict = result["verdict"]
    assert verdict["metric"] == "test/acc"
    assert verdict["dense"] > 0.85, "the checkpoint's weights, not those of a fresh module"
    assert not verdict["needs_training"]
    assert verdict["sentence"].endswith("QAT is not needed.")
    assert result["train"] is None
    folder = Path(result["folder"])
    report = json.loads((folder / "report.json").read_text())
    assert report["plan"]["quantization"]["weight_bits"] == 8
    assert report["agreement"] > 0.99
    # Nothing was trained: the integers are those of the checkpoint's weights, within 7 bits as NumPy rounds them.
    with PackedReader(folder / "model.packed") as reader:
        written = reader.tensor("net.1.weight").numpy()
    weight = torch.load("dense.ckpt", weights_only=True)["state_dict"]["net.1.weight"].numpy()
    scale = np.abs(weight).max(1, keepdims=True) / 63
    np.testing.assert_allclose(written, np.rint(weight / scale) * scale, atol=1e-6)


def test_too_few_bits_ask_for_training_with_a_command_that_trains(capsys: pytest.CaptureFixture[str]) -> None:
    bits = ("quantization=w2a2", "quantization.first_last_bits=null", "export.formats=[packed]")
    result = calibrated(capsys, "--batches", "2", *bits, code=1)
    assert result["verdict"]["needs_training"]
    assert result["verdict"]["loss"] > 0.01
    command = shlex.split(result["train"])
    assert command[:2] == ["lightning-compress", "train"]
    assert "init_checkpoint=dense.ckpt" in command
    capsys.readouterr()
    assert main([command[1], "--json", *command[2:], "trainer.max_epochs=1"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert rows["dense"]["metrics"]["test/acc"] == pytest.approx(result["verdict"]["dense"])


def test_batch_norm_biases_and_equalization_are_settings_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        calibrated(capsys, "--output", f"out{i}", *given, "export.formats=[packed]")["results"]["deployed"]["metrics"]
        for i, given in enumerate(([], ["--no-bias-correction"], ["--batchnorm"], ["--equalize"]))
    ]
    assert len({metrics["test/loss"] for metrics in found}) == 4


def test_what_needs_training_is_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrated(capsys, "pruning=global", "export.formats=[packed]")["left_out"] == ["pruning"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--batches", "0"], "--batches: expected at least 1"),
        (["quantization=none"], "quantization: expected a choice such as w8a8"),
        (["export=none"], "export: expected a choice such as default"),
        (["export.verify=false"], "export.verify: expected true"),
        (["quantization.range=learned"], "quantization.range: expected minmax, percentile or mse"),
        (["quantization.weight_bits={0: 8, 4: 4}"], "quantization.weight_bits: expected one bit width"),
        (
            ["--metric", "test/accuracy"],
            "--metric: expected a metric that the evaluation logs, got 'test/accuracy'. Closest: test/acc",
        ),
        (["--max-drop", "much"], "--max-drop: expected a loss"),
        (["--frequency", "2"], "there is no option --frequency"),
        (["trainer.limit_train_batches=0"], "calibrate: the training data has no batch"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    given: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [text for text in MODEL if "export=none" not in given or not text.startswith("export.")]
    assert main(["calibrate", "--checkpoint", "dense.ckpt", *given, *own]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert "\n" not in error[error.index("error:") :]
    assert not Path("calibrated").exists()


def test_a_checkpoint_of_another_network_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = [text.replace("hidden=32", "hidden=48") for text in MODEL]
    assert main(["calibrate", "--checkpoint", "dense.ckpt", *model]) == 2
    error = capsys.readouterr().err
    assert "--checkpoint: 'net.1.weight' has shape [32, 64] in the dense state and [48, 64] in Own" in error
    assert main(["calibrate", "--checkpoint", "none.ckpt", *MODEL]) == 2
    assert "--checkpoint: expected a checkpoint file" in capsys.readouterr().err
    assert not Path("calibrated").exists()


def report(dense: float, deployed: float, samples: int, name: str = "test/acc") -> dict[str, Any]:
    """The part of a report that is judged."""
    rows = {"dense": {"metrics": {name: dense}}, "deployed": {"metrics": {name: deployed}}}
    return {"results": rows, "samples": samples, "failures": []}


@pytest.mark.parametrize(
    ("dense", "deployed", "samples", "needs", "says"),
    [
        (0.900, 0.899, 1000, False, "loses 0.10 points of test/acc (standard error 0.95 points): no measurable"),
        (
            0.900,
            0.895,
            100_000,
            False,
            "loses 0.50 points of test/acc (standard error 0.10 points), at most 1.00",
        ),
        (0.900, 0.868, 10_000, True, "loses 3.20 points of test/acc (standard error 0.32 points), at most 1.00 points"),
        (0.900, 0.905, 10_000, False, "no measurable difference"),
        (0.900, float("nan"), 10_000, True, "train"),
    ],
)
def test_the_verdict_follows_from_the_loss_its_limit_and_the_binomial_standard_error(
    dense: float, deployed: float, samples: int, needs: bool, says: str
) -> None:
    found = judge(report(dense, deployed, samples), (0.01, True))
    assert found.needs_training is needs
    assert says in found.sentence


def test_of_a_loss_a_percentage_is_relative_and_more_is_worse() -> None:
    assert judge(report(2.0, 2.01, 100, "test/loss"), (0.01, True)).needs_training is False
    assert judge(report(2.0, 2.03, 100, "test/loss"), (0.01, True)).needs_training is True
    assert judge(report(2.0, 1.0, 100, "test/loss"), (0.01, True)).needs_training is False
    with pytest.raises(CompressionError, match="--metric"):
        judge(report(0.9, 0.9, 10), (0.01, True), metric="test/acx")
