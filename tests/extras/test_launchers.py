"""Sweeps that run in parallel processes, each through a launcher and a sweeper that Hydra installs as a plugin."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_compress.apps.compare.sweep import read_sweep

JOB = (
    *("train", "-m", "sweep=resumable", "name=tiny", "dense_baseline=true", "model=mlp", "model.net.hidden=[16]"),
    *("threads=1", "trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=4"),
    *("trainer.enable_progress_bar=false", "pruning=global", "export=default", "export.formats=[packed]"),
    *("export.latency=false", "hydra.sweep.dir=sweep"),
)
LAUNCHERS = {
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "submitit": ("hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1"),
    "ray": (
        "hydra/launcher=ray",
        "+hydra.launcher.ray.init.num_cpus=2",
        "+hydra.launcher.ray.init.include_dashboard=false",
    ),
}


def command(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lightning_compress.cli.main", *arguments], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("launcher", list(LAUNCHERS))
def test_jobs_in_parallel_processes_share_one_dense_control(tmp_path: Path, launcher: str) -> None:
    sweep = (*JOB, "pruning.final_sparsity=0.5,0.9", *LAUNCHERS[launcher])
    command(tmp_path, *sweep)
    jobs = read_sweep(tmp_path / "sweep").finished
    assert sorted(job.sparsity for job in jobs) == [0.5, 0.9]
    assert all(job.dense_trained for job in jobs)
    assert len({job.dense_metrics["test/acc"] for job in jobs}) == 1
    assert len(list((tmp_path / "sweep" / "shared").glob("*/dense/dense.ckpt"))) == 1


def test_finished_jobs_are_not_run_again_by_parallel_processes(tmp_path: Path) -> None:
    sweep = (*JOB, "pruning.final_sparsity=0.5,0.9", *LAUNCHERS["joblib"])
    command(tmp_path, *sweep)
    files = [*(tmp_path / "sweep").rglob("result.json"), *(tmp_path / "sweep" / "shared").rglob("dense.ckpt")]
    assert len(files) == 3
    written = {file: file.stat().st_mtime_ns for file in files}
    command(tmp_path, *sweep)
    assert {file: file.stat().st_mtime_ns for file in files} == written


def test_optuna_goes_on_with_its_study_and_knows_all_three_objectives(tmp_path: Path) -> None:
    import optuna

    study = (
        *("train", "-m", "sweep=optuna", "name=tiny", "model=mlp", "model.net.hidden=[16]", "trainer.max_epochs=2"),
        *("trainer.limit_train_batches=6", "hydra.sweeper.n_trials=2", "hydra.sweep.dir=sweep"),
    )
    command(tmp_path, *study)
    command(tmp_path, *study)
    found = optuna.load_study(study_name="tiny", storage=f"sqlite:///{tmp_path / 'sweep' / 'study.db'}")
    assert len(found.trials) == 4
    assert [direction.name for direction in found.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    # What the study knows is what the jobs themselves wrote down.
    results = [json.loads(file.read_text())["values"] for file in (tmp_path / "sweep").rglob("result.json")]
    objectives = ("deployed/test/acc", "compress/size_mb/packed", "deployed/latency_ms/median")
    assert sorted(tuple(values[name] for name in objectives) for values in results) == sorted(
        tuple(trial.values) for trial in found.trials
    )
