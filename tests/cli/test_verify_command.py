"""A run of the main job, and its files run again; one of them damaged in a single layer."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from lightning_compress.apps.configuration.saved_config import run_config
from lightning_compress.apps.trained_run import find_run
from lightning_compress.cli.main import main

RUN = (
    "model=mlp",
    "model.net.hidden=[24,16]",
    "trainer.enable_progress_bar=false",
    "trainer.max_epochs=2",
    "pruning=global",
    "quantization=w8a8",
    "export=default",
    "export.latency=false",
    "logger=none",
    "callbacks.monitor=null",
    "dense_baseline=true",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "the run"
    assert main(["train", *RUN, f"hydra.run.dir='{folder}'"]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy in another place, as after a download."""
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def verified(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[dict[str, Any]]]]:
    def verify(*arguments: object) -> tuple[int, list[dict[str, Any]]]:
        capsys.readouterr()
        code = main(["verify", *map(str, arguments), "--json"])
        return code, json.loads(capsys.readouterr().out)["files"]

    return verify


def damage(path: Path, part: str, factor: float) -> None:
    model = onnx.load(path)
    item = next(item for item in model.graph.initializer if part in item.name)
    item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * factor, item.name))
    onnx.save(model, path)


def test_every_file_of_an_export_gives_the_metrics_of_its_report(run: Path, verified: Any) -> None:
    code, files = verified(run / "compressed", "--max-drop", "100%", "--min-agreement", "0.98")
    assert code == 0
    assert [Path(item["path"]).name for item in files] == ["model.onnx", "model.packed"]
    report = json.loads((run / "compressed" / "report.json").read_text())
    for form in ("dense", "fake_quantized"):
        expected = report["results"][form]["metrics"]
        assert files[0]["metrics"][form] == pytest.approx(expected, abs=1e-5)
    assert files[0]["metrics"]["deployed"] == pytest.approx(report["results"]["deployed"]["metrics"], abs=1e-5)
    assert all(item["samples"] == report["samples"] and item["divergence"] is None for item in files)


def test_a_layer_that_was_damaged_is_named_and_nothing_is_deleted(run: Path, verified: Any) -> None:
    path = run / "compressed" / "model.onnx"
    damage(path, "layers.3.weight_scale", 3.0)
    before = {item: hashlib.sha256(item.read_bytes()).hexdigest() for item in run.rglob("*") if item.is_file()}
    code, (found,) = verified(path)
    assert code == 1
    assert found["divergence"]["layers"] == ["net.layers.3"]
    assert "first in net.layers.3" in found["failures"][0]
    assert "checksum differs" in found["notes"][0]
    after = {item: hashlib.sha256(item.read_bytes()).hexdigest() for item in run.rglob("*") if item.is_file()}
    assert after == before


def test_a_drop_beyond_the_limit_ends_with_1(run: Path, verified: Any) -> None:
    path = run / "compressed" / "model.onnx"
    damage(path, "layers.5.weight_scale", -1.0)
    code, (found,) = verified(path, "--max-drop", "5%", "--metric", "test/acc")
    assert code == 1
    assert any("test/acc drops by" in failure for failure in found["failures"])


def test_a_demand_on_agreement_that_does_not_hold_ends_with_1(run: Path, verified: Any) -> None:
    path = run / "compressed" / "model.onnx"
    damage(path, "layers.5.weight_scale", -1.0)
    code, (found,) = verified(path, "--min-agreement", "0.5")
    assert code == 1
    assert found["agreement"] < 0.5
    assert any("at least 50.00%" in failure for failure in found["failures"])


def test_a_file_that_does_not_load_ends_with_1(run: Path, verified: Any) -> None:
    path = run / "compressed" / "model.packed"
    path.write_bytes(path.read_bytes()[:-9])
    code, (found,) = verified(path)
    assert code == 1
    assert "model.packed" in found["failures"][0]


def test_without_a_checkpoint_the_packed_file_stands_for_the_trained_model(run: Path, verified: Any) -> None:
    shutil.rmtree(run / "checkpoints")
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "checkpoint": None}))
    code, (found,) = verified(run / "compressed" / "model.onnx")
    assert code == 0
    assert "model.packed stands for the trained model" in found["notes"][0]
    assert found["agreement"] >= 0.98


def test_settings_of_the_run_can_be_changed(run: Path, verified: Any) -> None:
    path = run / "compressed" / "model.onnx"
    _, (whole,) = verified(path, "--split", "val")
    _, (other,) = verified(path, "--split", "val", "data.val_fraction=0.05")
    assert other["samples"] < whole["samples"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.nonsense=1"], "data.nonsense: the run has no such setting"),
        (["data=mnist"], "what a run chose for a group stays"),
        (["--nonsense"], "options that --help lists"),
        (["--min-agreement", "2"], "a share from 0 to 1"),
        (["--max-drop", "1%", "--metric", "test/ac"], "Closest: test/acc"),
    ],
)
def test_wrong_use_ends_with_2(
    arguments: list[str], message: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(trained / "compressed" / "model.onnx"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_file_outside_any_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    assert main(["verify", str(tmp_path / "model.onnx")]) == 2
    assert "directory of a run" in capsys.readouterr().err


def test_paths_in_the_config_follow_the_directory_to_its_new_place(run: Path) -> None:
    with run_config(find_run(run / "compressed" / "model.onnx"), []) as cfg:
        assert Path(cfg.export.dirpath) == run / "compressed"


def test_a_table_is_printed(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(trained / "compressed")]) == 0
    printed = capsys.readouterr().out
    assert "Fake-quantized" in printed
    assert "but for rounding" in printed


def test_a_packed_file_is_timed_in_the_module_of_its_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(trained / "compressed" / name) for name in ("model.packed", "model.onnx")]
    assert main(["bench", files[0], "--against", files[1], "--batch-size", "5", "--seconds", "0.02", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    # Fake quantization in PyTorch, operator by operator, against one call of compiled kernels.
    assert row["ratio"]["median"] > 1
