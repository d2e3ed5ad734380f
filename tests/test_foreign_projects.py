from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from foreign_projects import ADDED_TO_THE_TEMPLATE, CLI_PROJECT, OWN_HYDRA_APPLICATION, TEMPLATE, write
from patience import HANG_SECONDS
from sklearn.datasets import load_digits


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )


def exported(folder: Path) -> dict[str, Any]:
    """The report of an export whose file classifies digits that it was not trained on."""
    images, labels = load_digits(return_X_y=True)
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    x = (images[768:896] / 16).astype(np.float32)
    found = np.concatenate(session.run(None, {session.get_inputs()[0].name: x}))
    assert (found.argmax(1) == labels[768:896]).mean() > 0.6
    assert (folder / "model.packed").stat().st_size < (folder / "model.onnx").stat().st_size
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def sparsities(report: dict[str, Any]) -> dict[str, float]:
    return {row["name"]: round(row["sparsity"], 2) for row in report["layers"] if len(row["shape"]) == 2}


def test_an_application_of_its_own_takes_our_groups_to_an_exported_file(tmp_path: Path) -> None:
    project = write(tmp_path, OWN_HYDRA_APPLICATION)
    done = run(project, "train.py", "pruning.final_sparsity=0.7", "quantization=w4a8")
    assert done.returncode == 0, done.stderr
    report = exported(project / "out" / "compressed")
    assert report["plan"]["pruning"]["distribution"] == "erk"
    assert {row["weight_bits"] for row in report["layers"] if len(row["shape"]) == 2} == {4}
    pruned = sum(row["sparsity"] * row["numel"] for row in report["layers"] if len(row["shape"]) == 2)
    assert pruned / (64 * 32 + 32 * 10) == pytest.approx(0.7, abs=0.01)


def test_a_project_in_the_template_s_shape_needs_one_callbacks_file_more(tmp_path: Path) -> None:
    project = write(tmp_path, TEMPLATE, ADDED_TO_THE_TEMPLATE)
    done = run(project, "src/train.py", "callbacks=compress")
    assert done.returncode == 0, done.stderr
    report = exported(project / "out" / "compressed")
    assert sparsities(report) == {"net.0.weight": 0.8, "net.2.weight": 0.0}
    assert {row["name"]: row["weight_bits"] for row in report["layers"] if len(row["shape"]) == 2} == {
        "net.0.weight": 8,
        "net.2.weight": 4,
    }
    assert list((project / "out" / "checkpoints").glob("*.ckpt"))


def test_lightning_cli_builds_the_callbacks_of_a_yaml_file(tmp_path: Path) -> None:
    project = write(tmp_path, CLI_PROJECT)
    done = run(project, "train.py", "fit", "--config", "config.yaml")
    assert done.returncode == 0, done.stderr
    report = exported(project / "compressed")
    pruned = sum(row["sparsity"] * row["numel"] for row in report["layers"] if len(row["shape"]) == 2)
    assert pruned / (64 * 32 + 32 * 10) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("final_sparsity: 0.8", "final_sparsty: 0.8", "final_sparsty"),
        ("formats: [onnx, packed]", "formats: 3", "formats"),
        ("lightning_compress.CompressionMonitor", "lightning_compress.CompressionMonitr", "CompressionMonitr"),
    ],
)
def test_lightning_cli_refuses_what_our_callbacks_do_not_take(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    good: str,
    bad: str,
    message: str,
) -> None:
    project = write(tmp_path, CLI_PROJECT)
    config = project / "config.yaml"
    config.write_text(config.read_text().replace(good, bad))
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)
    monkeypatch.delitem(sys.modules, "project", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", "config.yaml"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path("train.py", run_name="__main__")
    assert message in capsys.readouterr().err
    assert not (project / "compressed").exists()
