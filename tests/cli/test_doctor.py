from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_compress.cli.main import main

QUICK = ("model=mlp", "model.net.hidden=[32]", "trainer.accelerator=cpu", "trainer.max_epochs=4")


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def found(capsys: pytest.CaptureFixture[str], *overrides: str, code: int = 0) -> dict[str, Any]:
    """What ``doctor --json`` prints."""
    assert main(["doctor", "--json", *QUICK, *overrides]) == code
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_the_plan_is_that_of_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    result = found(capsys, "pruning=uniform", "pruning.final_sparsity=0.7", "quantization=w4a8")
    weights = [item for item in result["parameters"] if item["pruned"]]
    assert [item["sparsity"] for item in weights] == [pytest.approx(0.7, abs=0.01)] * 2
    assert {item["weight_bits"] for item in weights} == {4}
    # 1,797 digits less a fifth for test and a tenth for validation, in batches of 64: 20 steps an epoch.
    assert result["total_steps"] == 4 * result["steps_per_epoch"] == 80
    assert result["errors"] == []
    assert result["activations"]


def test_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found(capsys, "pruning=global", "quantization=w8a8", "export=default", "export.dirpath=compressed")
    assert list(tmp_path.iterdir()) == []


def test_without_json_every_parameter_and_phase_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *QUICK, "pruning=global", "quantization=w8a8"]) == 0
    text = capsys.readouterr().out
    for part in ("unstructured, global", "8 bits per channel", "of 80 steps", "packed: about", "Nothing stands"):
        assert part in text


def test_brackets_of_a_pattern_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    pattern = "re:net[.]layers[.]1[.][a-z]+"
    assert main(["doctor", *QUICK, "pruning=global", f"pruning.ignore=['{pattern}']"]) == 0
    assert f"ignored by '{pattern}'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("pruning=global", "pruning.end=5000"), "GradualMagnitudePruning.end: expected at most the run's 80"),
        (("pruning=global", "pruning.pattern=2:4"), "GradualMagnitudePruning.final_sparsity: expected 0.5"),
        (("quantization=w8a8", "quantization.start=9ep"), "QuantizationAwareTraining.start: expected a point before"),
        (("quantization=w8a8", "quantization.weight_bits=1"), "QuantizationAwareTraining.weight_bits: expected"),
        (("export=default", "export.formats=[onx]"), "CompressedExport.formats: expected"),
        (("pruning=global", "pruning.ignore=[fcc]"), "GradualMagnitudePruning.ignore: expected"),
    ],
)
def test_what_training_would_refuse_ends_with_1_and_the_error_of_training(
    capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...], message: str
) -> None:
    result = found(capsys, *overrides, code=1)
    assert len(result["errors"]) == 1
    assert message in result["errors"][0]
    # A rejected setting in training is wrong use, with the same words.
    assert main(["train", *QUICK, *overrides]) == 2
    assert result["errors"][0] in capsys.readouterr().err


def test_distillation_from_a_control_that_is_not_trained_yet_is_on_the_timeline(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = found(capsys, "distillation=logits", "dense_baseline=true", "distillation.end=0.5")
    assert result["phases"] == [{"name": "distillation", "start": 0, "end": 40}]


def test_both_parts_are_diagnosed_though_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    result = found(capsys, "pruning=global", "quantization=w8a8", "quantization.ignore=[fcc]", code=1)
    assert [item["name"] for item in result["parameters"] if item["pruned"]]


def test_misspelt_settings_are_wrong_use_and_answered_without_loading_torch() -> None:
    code = (
        "import sys\nfrom lightning_compress.cli.main import main\n"
        "assert main(['doctor', 'pruning=globl']) == 2\n"
        "print([name for name in ('torch', 'lightning', 'wandb', 'onnx') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
    assert "Closest: global" in answer.stderr


def test_a_module_of_ones_own_is_diagnosed_by_its_first_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_module.py").write_text(
        "import lightning as L, torch\nfrom torch import nn\n"
        "class Own(L.LightningModule):\n"
        "    def configure_model(self):\n"
        "        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))\n"
        "    def training_step(self, batch, batch_idx):\n"
        "        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])\n"
        "        self.log('loss', loss)\n"
        "        return loss\n"
        "    def configure_optimizers(self):\n"
        "        return torch.optim.SGD(self.parameters(), lr=0.1)\n"
    )
    overrides = ["model=custom", "model._target_=own_module.Own", "trainer.accelerator=cpu", "quantization=w8a8"]
    assert main(["doctor", "--json", *overrides]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {item["name"]: item["input_bits"] for item in result["parameters"] if item["quantized"]} == {
        "net.1.weight": 8,
        "net.3.weight": 8,
    }
    assert any("no example_input_array" in note for note in result["notes"])


def test_what_an_export_would_refuse_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "validated.py").write_text(
        "import lightning as L, torch\n"
        "class Validated(L.LightningModule):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
        "    def loss(self, batch):\n"
        "        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])\n"
        "    def training_step(self, batch, _):\n"
        "        return self.loss(batch)\n"
        "    def validation_step(self, batch, _):\n"
        "        self.log('val/loss', self.loss(batch))\n"
        "    def configure_optimizers(self):\n"
        "        return torch.optim.SGD(self.parameters(), 0.1)\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["model=custom", "model._target_=validated.Validated", "quantization=w8a8", "trainer.accelerator=cpu"]
    assert main(["doctor", *words, "export=default", "export.split=val"]) == 0
    capsys.readouterr()
    assert main(["doctor", *words, "export=default"]) != 0  # it evaluates on test data, and there is no test_step
    assert "split" in "".join(capsys.readouterr())
