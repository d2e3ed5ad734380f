from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb_runs import read_runs

from lightning_compress.cli.main import main


def written(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["wandb-sweep", *arguments]) == 0
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return found


def test_a_grid_has_the_parameters_of_the_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    found = written(capsys, "sweep=grid")
    assert found["method"] == "grid"
    assert found["metric"] == {"name": "compress/deployed/test/acc", "goal": "maximize"}
    assert found["parameters"] == {
        "pruning.final_sparsity": {"values": [0.0, 0.5, 0.8, 0.9, 0.95]},
        "quantization": {"values": ["none", "w8a8", "w4a8", "w4a4", "w2a2"]},
    }


def test_values_and_intervals_of_the_command_line_are_swept_over(capsys: pytest.CaptureFixture[str]) -> None:
    swept = ("pruning=global,erk", "pruning.final_sparsity=interval(0.5,0.9)", "model.lr=tag(log,interval(1e-4,1e-2))")
    found = written(capsys, "--method", "bayes", *swept, "seed=3", "export=default", "+trainer.note=null,1")
    assert found["parameters"] == {
        "pruning": {"values": ["global", "erk"]},
        "pruning.final_sparsity": {"min": 0.5, "max": 0.9},
        "model.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
        "trainer.note": {"values": ["null", 1]},
    }
    assert "seed=3" in found["command"]


@pytest.mark.parametrize("fixed", ["pruning.final_sparsity=0.7", "++pruning.final_sparsity=0.7"])
def test_what_the_command_line_fixes_is_not_swept_over(capsys: pytest.CaptureFixture[str], fixed: str) -> None:
    found = written(capsys, "sweep=grid", fixed)
    assert list(found["parameters"]) == ["quantization"]
    assert fixed in found["command"]


@pytest.mark.parametrize("arguments", [("--metric", "val/acc"), ("export=none,default",), ("export=default",)])
def test_a_metric_that_some_run_logs_can_be_best(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert "seed" in written(capsys, "seed=0,1", *arguments)["parameters"]


def test_the_command_of_the_agent_trains(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B's own code makes the command, as in an agent."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    quick = ("model=mlp", "model.net.hidden=[8]", "trainer=cpu", "trainer.max_epochs=1", "hydra.run.dir=.", "threads=1")
    quiet = ("trainer.limit_train_batches=2", "trainer.enable_progress_bar=false")
    swept = ("pruning=global,erk", "pruning.final_sparsity=0.5,0.9")
    found = written(capsys, "--metric", "val/acc", *swept, *quick, *quiet)
    chosen = {name: {"value": parameter["values"][0]} for name, parameter in found["parameters"].items()}
    arguments = create_sweep_command_args({"args": chosen})["args_no_hyphens"]
    assert arguments == ["pruning=global", "pruning.final_sparsity=0.5"]
    command = create_sweep_command(found["command"])
    place = command.index("${args_no_hyphens}")
    program, *command = [*command[:place], *arguments, *command[place + 1 :]]
    assert program == "lightning-compress"
    command[command.index("logger.wandb.offline=false")] = "logger.wandb.offline=true"
    assert main(command) == 0
    (run,) = read_runs(tmp_path)
    assert run.config["pruning"]["final_sparsity"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("seed=3",), "wandb-sweep: expected something to sweep over"),
        (("pruning=global", "pruning.final_sparsity=interval(0,1)"), "Give --method random or bayes."),
        (("sweep=grd",), "sweep: expected one of"),
        (("seed=0,1",), "wandb-sweep --metric: expected a metric that the runs log, got 'compress/deployed/test/acc'."),
        (("sweep=grid", "export=none"), "They export no model. Add export=default"),
    ],
)
def test_wrong_use_is_one_paragraph_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert main(["wandb-sweep", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
