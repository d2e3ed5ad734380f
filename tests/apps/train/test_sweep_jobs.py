from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock
from omegaconf import OmegaConf
from patience import HANG_SECONDS

from lightning_compress.apps.compare.sweep import read_sweep
from lightning_compress.apps.train.outcome import Outcome
from lightning_compress.apps.train.sweep_jobs import LastSweep, config_hash, dense_control, dense_hash, read_jobs, run
from lightning_compress.cli.main import main

TINY = (
    "model=mlp",
    "model.net.hidden=[16]",
    "logger=none",
    "threads=1",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=6",
    "trainer.enable_progress_bar=false",
    "export.formats=[packed]",
    "export.latency=false",
    "hydra.sweep.dir=sweep",
    "hydra.sweep.subdir='${hydra.job.num}'",
)
GRID = ("sweep=grid", "pruning.final_sparsity=0.5,0.7,0.9", "quantization=none", *TINY)


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def results(sweep: Path = Path("sweep")) -> dict[str, tuple[int, dict[str, float]]]:
    """Job → when its result was written, and its numbers."""
    files = sorted(sweep.rglob("result.json"))
    return {file.parent.name: (file.stat().st_mtime_ns, json.loads(file.read_text())["values"]) for file in files}


def test_a_killed_sweep_started_again_runs_only_what_is_missing() -> None:
    command = [sys.executable, "-m", "lightning_compress.cli.main", "train", "-m", *GRID]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    first = Path("sweep/0/job.json")
    deadline = time.monotonic() + HANG_SECONDS
    while not (first.exists() and json.loads(first.read_text())["status"] == "finished"):
        assert process.poll() is None, "the sweep ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = results()
    assert 1 <= len(before) < 3
    (dense,) = Path("sweep/shared").glob("*/dense/dense.ckpt")
    trained = dense.stat().st_mtime_ns

    assert main(["train", "-m", *GRID]) == 0
    after = results()
    assert sorted(after) == ["0", "1", "2"]
    assert {name: after[name] for name in before} == before, "finished jobs are left alone"
    (dense,) = Path("sweep/shared").glob("*/dense/dense.ckpt")
    assert dense.stat().st_mtime_ns == trained, "the dense control is trained once"
    jobs = read_sweep("sweep").finished
    assert len(jobs) == 3
    assert len({job.dense_metrics["test/acc"] for job in jobs}) == 1
    assert all(job.dense_trained for job in jobs)


def test_a_failed_job_is_noted_and_does_not_end_the_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    grid = ("sweep=grid", "pruning.final_sparsity=1.5,0.5", "quantization=none", *TINY, "dense_baseline=false")
    assert main(["train", "--json", "-m", *grid]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert [job["status"] for job in printed["jobs"]] == ["failed", "finished"]
    assert "final_sparsity: expected a share in [0, 1), got 1.5" in printed["jobs"][0]["error"]
    before = results()
    assert sorted(before) == ["1"]
    assert main(["train", "-m", *grid]) == 1
    assert results() == before


def test_a_job_that_was_stopped_between_its_result_and_its_record_is_finished(
    capsys: pytest.CaptureFixture[str],
) -> None:
    grid = ("sweep=grid", "pruning.final_sparsity=0.5", "quantization=none", *TINY, "dense_baseline=false")
    assert main(["train", "-m", *grid, "hydra.sweep.dir='a sweep'"]) == 0
    assert "lightning-compress compare 'a sweep'\n" in capsys.readouterr().out
    record = Path("a sweep/0/job.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "status": "running"}))
    before = results(Path("a sweep"))
    assert main(["train", "-m", *grid, "hydra.sweep.dir='a sweep'"]) == 0
    assert results(Path("a sweep")) == before
    assert "1 of 1 jobs are finished." in capsys.readouterr().out


def test_another_config_does_not_take_the_result_of_a_job_of_the_same_name(capsys: pytest.CaptureFixture[str]) -> None:
    grid = ("sweep=grid", "pruning.final_sparsity=0.5", "quantization=none", *TINY, "dense_baseline=false")
    assert main(["train", "-m", *grid]) == 0
    before, record = results(), Path("sweep/0/job.json").read_text()
    capsys.readouterr()
    assert main(["train", "-m", *grid, "seed=7"]) == 1
    printed = capsys.readouterr().out
    assert "Refused: sweep/0  hydra.sweep.dir: expected jobs of equal names to have equal configs" in printed
    assert "0 of 1 jobs are finished." in printed
    assert (results(), Path("sweep/0/job.json").read_text()) == (before, record)
    assert main(["train", "-m", *grid, "logger=csv", "trainer.enable_progress_bar=true"]) == 0
    assert results() == before, "what is only shown or logged makes no other job"


def test_a_refusal_is_noted_in_the_jobs_directory_until_the_next_sweep_begins() -> None:
    cfg, folder = OmegaConf.create({"seed": 0}), Path("sweep/0")
    Outcome("a", str(folder), {}, {}, None, None, None, {}, failures=("too large",)).write()
    assert run(cfg, folder, "sweep", ["seed=0"]) is None
    (job,) = read_jobs(Path("sweep"))
    assert (job["name"], job["status"], job["overrides"], job["failures"]) == ("0", "refused", ["seed=0"], [])
    assert "It holds the result of another config" in job["error"]
    LastSweep().on_multirun_start(OmegaConf.create({"hydra": {"sweep": {"dir": "sweep"}}}))
    assert read_jobs(Path("sweep")) == []


def test_the_hash_sees_what_changes_a_result_and_not_where_it_lies() -> None:
    base = {"seed": 0, "name": "a", "logger": {"csv": "x"}, "trainer": {"max_epochs": 2, "root": "out/1/x"}}

    def hashed(output: str, **changed: object) -> str:
        return config_hash(OmegaConf.merge(base, changed), Path(output))

    assert hashed("out/1") == hashed("out/2", name="b", logger=None, trainer={"root": "out/2/x"})
    assert hashed("out/1") != hashed("out/1", seed=1)
    assert hashed("out/1") != hashed("out/1", trainer={"max_epochs": 3})
    assert hashed("out/1") != hashed("out/1", dense_checkpoint="other.ckpt")


def test_jobs_that_differ_in_compression_alone_have_one_dense_control() -> None:
    base = OmegaConf.create({"seed": 0, "model": {"width": 8}, "pruning": {"final_sparsity": 0.5}, "trainer": {}})
    here = Path("out")
    pruned = OmegaConf.merge(base, {"pruning": {"final_sparsity": 0.9}, "quantization": {"weight_bits": 4}})
    assert dense_hash(base, here) == dense_hash(pruned, here)
    for changed in ({"seed": 1}, {"model": {"width": 9}}, {"trainer": {"max_epochs": 3}}):
        assert dense_hash(base, here) != dense_hash(OmegaConf.merge(base, changed), here)


def test_a_finished_job_gives_a_sweeper_its_objectives_again() -> None:
    cfg = OmegaConf.create({"seed": 0, "optimized_metric": ["deployed/bytes", "val/acc"]})
    output = Path("sweep/0")
    values = {"val/acc": 0.9, "deployed/bytes": 1000.0}
    Outcome("a", str(output), {}, values, None, None, None, {}).write()
    record = {"config_hash": config_hash(cfg, output), "status": "finished"}
    (output / "job.json").write_text(json.dumps(record))
    # This config could not be trained.
    outcome = run(cfg, output, "sweep")
    assert outcome is not None
    assert outcome.objective == (1000.0, 0.9)


def test_a_dense_control_in_the_making_is_waited_for_and_not_trained_again() -> None:
    cfg = OmegaConf.create({"seed": 0})
    folder = Path("sweep/shared") / f"dense-{dense_hash(cfg, Path('out'))[:16]}"
    folder.mkdir(parents=True)
    found: list[Path] = []
    waiting = threading.Thread(target=lambda: found.append(dense_control(cfg, Path("out"), Path("sweep"))))
    with FileLock(folder / "lock"):
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive(), "another process trains it"
        (folder / "done.json").write_text("{}")
    waiting.join(10)
    # This config could not be trained.
    assert found == [(folder / "dense" / "dense.ckpt").resolve()]
