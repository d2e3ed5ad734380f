from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning_modules import PlainModule, loader, quiet_trainer
from reports import example_report
from wandb_runs import OfflineRun, read_runs

from lightning_compress import loggers
from lightning_compress.callbacks import CompressionMonitor, GradualMagnitudePruning
from lightning_compress.metrics import describe


@pytest.fixture(autouse=True)
def _wandb_at_home_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import wandb

    for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    wandb.finish()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> OfflineRun:
    """A run with every kind of thing in it, read back from its own file."""
    import wandb

    tmp_path = tmp_path_factory.mktemp("run")
    (tmp_path / "model.onnx").write_bytes(b"weights")
    logger = WandbLogger(save_dir=tmp_path, project="tests", offline=True)
    pruning = GradualMagnitudePruning(0.8, start=4, end=12, every=1)
    trainer = quiet_trainer(
        logger=logger, log_every_n_steps=4, callbacks=[CompressionMonitor(torch.zeros(1, 3, 8, 8)), pruning]
    )
    trainer.fit(PlainModule(), loader(), loader(2))
    loggers.log_report(trainer.loggers, example_report(), [tmp_path / "model.onnx"])
    wandb.finish()
    (found,) = read_runs(tmp_path)
    return found


def test_a_wandb_run_holds_series_table_summary_and_artifact(run: OfflineRun) -> None:
    sparsity = run.series("compress/sparsity/global")
    assert [step for step, _ in sparsity] == [3, 7, 7, 11, 15, 15]
    assert sparsity[0][1] == 0
    assert sparsity[-1][1] == pytest.approx(0.8, abs=1e-3)
    for key in ("sparsity/target", "bits/weight", "bits/activation", "size_mb/dense", "size_mb/packed", "bops"):
        assert len(run.series(f"compress/{key}")) == len(sparsity)
    assert run.series("compress/compression_ratio")[-1][1] > 3

    table = run.table("compress/layers")
    assert table["columns"][0] == "name"
    assert [row[0] for row in table["data"]] == [name for name, _ in PlainModule().named_parameters()]

    results = example_report()["results"]
    for version in ("dense", "fake_quantized", "deployed"):
        assert run.summary[f"compress/{version}/test/acc"] == results[version]["metrics"]["test/acc"]
        assert run.summary[f"compress/{version}/bytes"] == results[version]["bytes"]
        assert run.summary[f"compress/{version}/latency_ms"] == results[version]["latency_ms"]["median"]

    (artifact,) = [a for a in run.artifacts if a.type == "model"]
    assert artifact.name.startswith("digits_cnn_sparse80_w8a8-")
    assert [entry.path for entry in artifact.manifest.contents] == ["model.onnx"]
    metadata = json.loads(artifact.metadata)
    assert metadata["results"] == results
    assert metadata["plan"] == example_report()["plan"]


def test_other_loggers_get_the_same_numbers(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    loggers.log_report([logger], example_report(), [])
    header, values = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    found = dict(zip(header.split(","), values.split(","), strict=True))
    assert float(found["compress/deployed/compression_ratio"]) == 3.606
    assert set(loggers.summary(example_report())) == set(found) - {"step"}


def test_what_was_not_measured_is_left_out() -> None:
    report = example_report()
    report["results"]["dense"] = None
    report["results"]["deployed"]["latency_ms"] = None
    report["agreement"] = None
    keys = set(loggers.summary(report))
    assert not any(key.startswith("compress/dense") for key in keys)
    assert "compress/deployed/latency_ms" not in keys
    assert "compress/agreement" not in keys


def test_a_failing_logger_is_a_warning(tmp_path: Path) -> None:
    class Broken(CSVLogger):
        def log_metrics(self, *args: Any, **kwargs: Any) -> None:
            raise ConnectionError("server is gone")

    healthy = CSVLogger(tmp_path)
    with pytest.warns(UserWarning, match=r"Broken did not take the report: server is gone. The run goes on."):
        loggers.log_report([Broken(tmp_path), healthy], example_report(), [])
    assert (Path(healthy.log_dir) / "metrics.csv").exists()


def test_a_finished_wandb_run_is_a_warning(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=tmp_path, project="tests", offline=True)
    logger.experiment.finish()
    with pytest.warns(UserWarning, match="WandbLogger did not take the table of layers"):
        loggers.log_layers([logger], describe(torch.nn.Linear(2, 2)))


def test_the_dense_and_the_compressed_checkpoint_stand_in_the_lineage(tmp_path: Path) -> None:
    import wandb

    for name in ("dense.ckpt", "last.ckpt", "model.onnx"):
        (tmp_path / name).write_bytes(name.encode())
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("dense.ckpt", "last.ckpt")}
    logger = WandbLogger(save_dir=tmp_path, project="tests", offline=True)
    dense, checkpoint = tmp_path / "dense.ckpt", tmp_path / "last.ckpt"
    loggers.log_report([logger], example_report(), [tmp_path / "model.onnx"], dense=dense, checkpoint=checkpoint)
    wandb.finish()
    (run,) = read_runs(tmp_path)
    by_file = {artifact.manifest.contents[0].path: artifact for artifact in run.artifacts}
    assert [artifact.type for artifact in by_file.values()] == ["checkpoint", "checkpoint", "model"]
    assert by_file["dense.ckpt"].name == "digits_cnn_sparse80_w8a8-dense"
    lineage = json.loads(by_file["model.onnx"].metadata)["lineage"]
    assert {part["file"]: part["sha256"] for part in lineage.values()} == digests
    assert [part["artifact"] for part in lineage.values()] == [
        by_file["dense.ckpt"].name,
        by_file["last.ckpt"].name,
    ]
    reference = by_file["dense.ckpt"].manifest.contents[0]
    assert reference.ref == (tmp_path / "dense.ckpt").as_uri(), "large files stay where they are"


def test_the_plan_stands_in_the_config_of_the_run(run: OfflineRun) -> None:
    plan = run.config["compress"]
    assert plan["total_steps"] == 16
    assert plan["phases"][0] == {"name": "pruning 0 to 0.8", "start": 4, "end": 12}
    assert plan["pruning"]["final_sparsity"] == 0.8


def test_the_layers_over_time_are_one_table_of_changes(run: OfflineRun) -> None:
    table = run.table("compress/layers_over_time")
    assert table["columns"] == ["step", "name", "sparsity_target", "sparsity", "weight_bits", "activation_bits"]
    weights = {row[1] for row in table["data"]}
    assert weights == {name for name, p in PlainModule().named_parameters() if p.dim() > 1}
    one = [row for row in table["data"] if row[1] == sorted(weights)[0]]
    assert [row[0] for row in one] == sorted({row[0] for row in one})
    assert all(before[2:] != after[2:] for before, after in pairwise(one))
    assert one[0][0] == 0


def test_the_schedule_is_a_picture(run: OfflineRun) -> None:
    from PIL import Image

    (row,) = [row for row in run.history if any(key.startswith("compress/schedule") for key in row)]
    path = next(iter(row["compress/schedule/filenames"]), None)
    with Image.open(run.directory / "files" / path) as picture:
        assert picture.size == (1080, 576)


def test_histograms_come_on_request(tmp_path: Path) -> None:
    import wandb

    logger = WandbLogger(save_dir=tmp_path, project="tests", offline=True)
    monitor = CompressionMonitor(histograms=True)
    quiet_trainer(logger=logger, callbacks=[monitor]).fit(PlainModule(), loader(), loader(2))
    wandb.finish()
    (found,) = read_runs(tmp_path)
    keys = {key for row in found.history for key in row if key.startswith("compress/weights/")}
    assert {key.removeprefix("compress/weights/").split("/")[0] for key in keys} == {
        name for name, p in PlainModule().named_parameters() if p.dim() > 1
    }


def test_an_alert_is_a_warning_and_an_alert_of_the_run(tmp_path: Path) -> None:
    import wandb

    logger = WandbLogger(save_dir=tmp_path, project="tests", offline=True)
    _ = logger.experiment
    with pytest.warns(UserWarning, match="A layer is dead: fc"):
        loggers.alert([logger, CSVLogger(tmp_path)], "A layer is dead", "fc.weight")
    wandb.finish()
    (found,) = read_runs(tmp_path)
    assert [(alert.title, alert.text) for alert in found.alerts] == [("A layer is dead", "fc.weight")]


def test_the_place_of_a_run_is_the_folder_that_can_be_synchronized(tmp_path: Path) -> None:
    logger = WandbLogger(save_dir=str(tmp_path), offline=True, project="a")
    found = loggers.sink(logger).place
    loggers.finish()
    assert found is not None
    assert Path(found).parent.parent == tmp_path
    assert list(Path(found).glob("*.wandb"))
    assert loggers.sink(CSVLogger(tmp_path)).place is None
