from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from sweeps import write_job, write_record

from lightning_compress import CompressionError
from lightning_compress.apps.compare.limits import Limits
from lightning_compress.apps.compare.sweep import read_sweep
from lightning_compress.apps.compare.table import HEADS, cells


def test_a_job_has_the_numbers_of_its_report(tmp_path: Path) -> None:
    write_job(tmp_path, "pruning.final_sparsity=0.9,quantization=w4a4", acc=0.95, sparsity=0.9, bits=4, latency=0.05)
    (job,) = read_sweep(tmp_path).jobs
    assert job.status == "finished"
    assert (job.pruning, job.quantization, job.sparsity, job.weight_bits) == ("90 % global", "w4a4", 0.9, 4)
    assert (job.bytes, job.latency_ms, job.dense_latency_ms, job.seconds) == (80_000, 0.05, 0.061, 12.0)
    assert job.drop("test/acc") == pytest.approx(0.03)
    assert job.overrides == {
        "pruning.final_sparsity": "pruning.final_sparsity=0.9",
        "quantization": "quantization=w4a4",
    }
    assert job.report == tmp_path / job.name / "compressed" / "report.html"


def test_the_share_of_integer_multiply_adds_stands_in_the_table(tmp_path: Path) -> None:
    report = write_job(tmp_path, "a") / "compressed" / "report.json"
    for share, cell in ((0.9876, "99 %"), (None, "–")):
        report.write_text(json.dumps({**json.loads(report.read_text()), "integer_share": share}))
        (job,) = read_sweep(tmp_path).jobs
        assert job.integer_share == share
        assert dict(zip(HEADS, cells(job, Limits.of("test/acc")), strict=True))["int8"] == cell


def test_the_format_says_whose_bytes_count(tmp_path: Path) -> None:
    write_job(tmp_path, "a", packed=20_000, onnx=80_000)
    sizes = [read_sweep(tmp_path, format).jobs[0].bytes for format in ("deployed", "onnx", "packed")]
    assert sizes == [80_000, 80_000, 20_000]
    with pytest.raises(CompressionError, match=r"compare --format: expected one of deployed, onnx, packed, got 'zip'"):
        read_sweep(tmp_path, "zip")


def test_failed_killed_and_broken_jobs_are_listed_with_the_reason(tmp_path: Path) -> None:
    write_job(tmp_path, "good")
    write_record(tmp_path / "failed", "failed", "GradualMagnitudePruning.final_sparsity: got 1.7.")
    write_record(tmp_path / "killed", "running")
    (write_job(tmp_path, "torn") / "compressed" / "report.json").write_text('{"format": 1, "na')
    (write_job(tmp_path, "other") / "compressed" / "report.json").write_text('{"format": 99}')
    (write_job(tmp_path, "dense_only") / "compressed" / "report.json").unlink()
    (tmp_path / "started" / ".hydra").mkdir(parents=True)
    found = {job.name: (job.status, job.error) for job in read_sweep(tmp_path).jobs}
    assert found.pop("good") == ("finished", None)
    assert found.pop("failed") == ("failed", "GradualMagnitudePruning.final_sparsity: got 1.7.")
    assert {status for status, _ in found.values()} == {"unfinished"}
    assert "killed" in found["killed"][1]
    assert "cannot be read" in found["torn"][1]
    assert "report.format" in found["other"][1]
    assert "export" in found["dense_only"][1]
    assert "started" in found


def test_overrides_are_read_as_hydra_wrote_them(tmp_path: Path) -> None:
    given = ["+trainer.inference_mode=true", "~distillation", "data.root='my data'", f"name='{'long ' * 30}name'"]
    for name, notes in (("whole", OmegaConf.to_yaml(OmegaConf.create(given))), ("torn", "- 'name=on")):
        job = write_job(tmp_path, name)
        (job / "job.json").unlink()
        (job / ".hydra").mkdir()
        (job / ".hydra" / "overrides.yaml").write_text(notes)
    torn, whole = read_sweep(tmp_path).jobs
    assert list(whole.overrides) == ["trainer.inference_mode", "distillation", "data.root", "name"]
    assert list(whole.overrides.values()) == given
    assert torn.overrides == {}


def test_what_the_jobs_share_is_no_job(tmp_path: Path) -> None:
    write_job(tmp_path, "a")
    write_record(tmp_path / "shared" / "dense-0", "finished")
    assert [job.name for job in read_sweep(tmp_path).jobs] == ["a"]


def test_a_sweep_that_was_moved_is_read_all_the_same(tmp_path: Path) -> None:
    write_job(tmp_path / "before", "a")
    shutil.move(tmp_path / "before", tmp_path / "after")
    (job,) = read_sweep(tmp_path / "after").jobs
    assert job.report is not None
    assert job.report.is_file()


def test_numbers_in_names_sort_as_numbers(tmp_path: Path) -> None:
    for name in ("s=10", "s=9", "s=0.95", "s=0.5"):
        write_job(tmp_path, name)
    assert [job.name for job in read_sweep(tmp_path).jobs] == ["s=0.5", "s=0.95", "s=9", "s=10"]


def test_exports_without_the_application_are_jobs_too(tmp_path: Path) -> None:
    write_job(tmp_path, "a")
    shutil.move(tmp_path / "a" / "compressed", tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    (job,) = read_sweep(tmp_path).jobs
    assert (job.name, job.status) == ("b", "finished")


def test_a_control_that_is_only_the_beginning_of_the_fit_is_told_apart(tmp_path: Path) -> None:
    path = write_job(tmp_path, "a") / "compressed" / "report.json"
    assert read_sweep(tmp_path).jobs[0].dense_trained
    report = json.loads(path.read_text())
    report["results"]["dense"]["source"] = "at start of fit"
    path.write_text(json.dumps(report))
    assert not read_sweep(tmp_path).jobs[0].dense_trained


def test_the_metric_is_the_first_accuracy_or_the_one_asked_for(tmp_path: Path) -> None:
    write_job(tmp_path, "a")
    sweep = read_sweep(tmp_path)
    assert sweep.metric() == "test/acc"
    assert sweep.metric("test/loss") == "test/loss"
    with pytest.raises(CompressionError, match=r"compare --metric: .* got 'test/ac'. Closest: test/acc"):
        sweep.metric("test/ac")


@pytest.mark.parametrize(("name", "message"), [("missing", "no such directory"), ("", "no job.json, result.json or")])
def test_a_directory_without_jobs_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        read_sweep(tmp_path / name)
