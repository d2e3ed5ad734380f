"""A real sweep with W&B offline, read back from W&B's own files, and the choice that is made from it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from wandb_runs import OfflineRun, read_runs

from lightning_compress.cli.main import main

SWEEP = (
    *("sweep=grid", "name=tiny", "pruning.final_sparsity=0.9", "quantization=none,w8a8,w4a8", "logger=wandb"),
    *("model=mlp", "model.net.hidden=[16]", "trainer.max_epochs=2", "trainer.limit_train_batches=8"),
    *(
        "trainer.log_every_n_steps=2",
        "pruning.every=2",
        "export.formats=[packed]",
        "export.latency=false",
        "hydra.sweep.dir=sweep",
    ),
)
WEIGHTS = {"net.layers.1.weight", "net.layers.3.weight"}


@dataclass
class Finished:
    """A job: its run as W&B's file has it, what the job itself wrote down, and its directory."""

    run: OfflineRun
    report: dict[str, Any]
    result: dict[str, Any]
    folder: Path

    def artifact(self, of: str) -> Any:
        """What was logged under the type ``model``, or of the dense or the compressed checkpoint."""
        (found,) = [
            artifact
            for artifact in self.run.artifacts
            if (artifact.type == "model" if of == "model" else artifact.name.endswith(of))
        ]
        return found


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a sweep of three jobs and of the comparison that was logged of it."""
    folder = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(variable, str(folder / "home"))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.chdir(folder)
        assert main(["train", "-m", *SWEEP]) == 0
        yield folder / "sweep"


@pytest.fixture(scope="module")
def jobs(sweep: Path) -> list[Finished]:
    found = []
    for job in sorted(path.parent for path in sweep.glob("*/job.json")):
        (run,) = read_runs(job)
        report, result = job / "compressed" / "report.json", job / "result.json"
        found.append(Finished(run, json.loads(report.read_text()), json.loads(result.read_text()), job))
    return found


def test_every_job_is_one_run_with_its_own_config_and_plan(jobs: list[Finished]) -> None:
    assert len({job.run.directory for job in jobs}) == 3
    plans = [job.run.config["compress"] for job in jobs]
    asked = {(p["pruning"]["final_sparsity"], p.get("quantization", {}).get("weight_bits")) for p in plans}
    assert asked == {(0.9, None), (0.9, 8), (0.9, 4)}
    for job, plan in zip(jobs, plans, strict=True):
        assert plan["pruning"]["final_sparsity"] == job.report["plan"]["pruning"]["final_sparsity"]
        assert plan["total_steps"] == 16


def test_runs_of_a_sweep_are_a_group_named_after_their_overrides(jobs: list[Finished]) -> None:
    assert {job.run.group for job in jobs} == {"sweep"}
    names = [job.run.name for job in jobs]
    assert len(set(names)) == 3
    for job in jobs:
        bits = job.run.config["compress"].get("quantization", {}).get("weight_bits")
        choice = {None: "none", 8: "w8a8", 4: "w4a8"}[bits]
        assert f"quantization={choice}" in job.run.name
        assert f"quantization={choice}" in job.run.tags


def test_every_run_has_the_series_of_its_own_compression(jobs: list[Finished]) -> None:
    for job in jobs:
        wanted = job.report["plan"]["pruning"]["final_sparsity"]
        for key in ("sparsity/global", "sparsity/target", "bits/weight", "bits/activation", "size_mb/packed", "bops"):
            steps = [step for step, _ in job.run.series(f"compress/{key}")]
            assert len(steps) >= 8, key
            assert steps == sorted(steps), key
        assert job.run.series("compress/sparsity/target")[-1][1] == pytest.approx(wanted, abs=0.01)
        sizes = [value for _, value in job.run.series("compress/size_mb/packed")]
        assert sizes[-1] < sizes[0]


def test_every_run_has_its_layers_and_how_they_changed_over_time(jobs: list[Finished]) -> None:
    for job in jobs:
        layers = job.run.table("compress/layers")
        assert {row[0] for row in layers["data"]} == {row["name"] for row in job.report["layers"]}
        table = job.run.table("compress/layers_over_time")
        sparsity = table["columns"].index("sparsity")
        assert {row[1] for row in table["data"]} == WEIGHTS
        reached = {row["name"]: row["sparsity"] for row in job.report["layers"]}
        for name in WEIGHTS:
            rows = [row for row in table["data"] if row[1] == name]
            assert (rows[0][0], rows[0][sparsity]) == (0, 0)
            assert len(rows) > 2
            assert rows[-1][sparsity] == pytest.approx(reached[name], abs=1e-4)


def test_the_summary_of_every_run_has_the_numbers_of_its_report(jobs: list[Finished]) -> None:
    for job in jobs:
        for version in ("dense", "fake_quantized", "deployed"):
            result = job.report["results"][version]
            assert job.run.summary[f"compress/{version}/test/acc"] == result["metrics"]["test/acc"]
            assert job.run.summary[f"compress/{version}/bytes"] == result["bytes"]
        assert job.run.summary["compress/agreement"] == job.report["agreement"]
        assert job.run.summary["compress/packed/bytes"] == (job.folder / "compressed" / "model.packed").stat().st_size


def test_every_exported_file_is_traced_to_its_checkpoint_and_to_the_dense_one(jobs: list[Finished]) -> None:
    for job in jobs:
        model, dense, checkpoint = (job.artifact(of) for of in ("model", "-dense", "-checkpoint"))
        files = {entry.path: entry for entry in model.manifest.contents}
        md5 = hashlib.md5((job.folder / "compressed" / "model.packed").read_bytes()).digest()
        assert files["model.packed"].digest == base64.b64encode(md5).decode()
        assert "report.json" in files

        lineage = json.loads(model.metadata)["lineage"]
        assert lineage["dense"]["artifact"] == dense.name
        assert lineage["checkpoint"]["artifact"] == checkpoint.name
        assert json.loads(checkpoint.metadata)["lineage"] == {"dense": lineage["dense"]}
        for of, artifact, field in (("dense", dense, "dense_checkpoint"), ("checkpoint", checkpoint, "checkpoint")):
            file = Path(job.result[field])
            assert lineage[of]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
            (entry,) = artifact.manifest.contents
            assert entry.ref == file.as_uri()


def test_all_runs_begin_from_one_dense_checkpoint_and_end_in_their_own(jobs: list[Finished]) -> None:
    lineages = [json.loads(job.artifact("model").metadata)["lineage"] for job in jobs]
    assert len({(lineage["dense"]["artifact"], lineage["dense"]["sha256"]) for lineage in lineages}) == 1
    assert len({lineage["checkpoint"]["artifact"] for lineage in lineages}) == 3
    assert len({job.artifact("model").name for job in jobs}) == 3


def test_the_choice_of_a_real_sweep_keeps_the_limits_none_is_better_and_it_is_aliased(
    sweep: Path, jobs: list[Finished], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["compare", str(sweep), "--max-drop", "50%", "--json", "--wandb", "tests"]) == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {job.folder.name: job for job in jobs}
    assert {job["name"] for job in found["jobs"]} == set(by_name)

    def drop(job: Finished) -> float:
        dense, deployed = (job.report["results"][of]["metrics"]["test/acc"] for of in ("dense", "deployed"))
        return float(dense - deployed)

    def size(job: Finished) -> int:
        return (job.folder / "compressed" / "model.packed").stat().st_size

    kept = {name for name, job in by_name.items() if drop(job) <= 0.5}
    chosen = by_name[found["choice"]]
    assert found["choice"] in kept
    assert size(chosen) == min(size(by_name[name]) for name in kept)

    (run,) = read_runs(sweep)
    assert run.summary["choice"] == found["choice"]
    (artifact,) = [artifact for artifact in run.artifacts if artifact.type == "model"]
    assert "chosen" in artifact.aliases
    assert {entry.digest for entry in artifact.manifest.contents if entry.path == "model.packed"} == {
        entry.digest for entry in chosen.artifact("model").manifest.contents if entry.path == "model.packed"
    }
