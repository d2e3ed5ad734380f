"""The workspace shows what runs really log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from wandb_runs import read_runs

from lightning_compress.cli.main import main
from lightning_compress.loggers.workspace import workspace

QUICK = (
    *("model=mlp", "model.net.hidden=[16]", "pruning=global", "pruning.every=2", "quantization=w8a8", "logger=wandb"),
    *("trainer.max_epochs=2", "trainer.limit_train_batches=8", "trainer.log_every_n_steps=2"),
    *("trainer.accelerator=cpu", "dense_baseline=false", "export=default", "threads=1", "hydra.run.dir=run"),
)


def test_every_panel_shows_something_that_a_run_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    assert main(["train", *QUICK]) == 0
    (run,) = read_runs(tmp_path / "run")
    logged = {key for row in run.history for key in row}
    found = json.loads(workspace("team", "project")._to_model().model_dump_json(by_alias=True))
    panels = [p for section in found["spec"]["section"]["panelBankConfig"]["sections"] for p in section["panels"]]
    lines = [panel["config"]["metrics"] for panel in panels if panel["viewType"] == "Run History Line Plot"]
    points = [panel["config"] for panel in panels if panel["viewType"] == "Scatter Plot"]
    assert (len(lines), len(points)) == (9, 3)
    assert {key for keys in lines for key in keys} <= logged
    axes = {axis.removeprefix("summary:") for config in points for axis in (config["xAxis"], config["yAxis"])}
    assert axes <= set(run.summary)


def test_a_server_that_is_not_there_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert main(["wandb-workspace", "team/project"]) == 2
    assert "W&B did not take the workspace of team/project" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["project", "/project", "team/", "a/b/c"])
def test_a_name_without_its_two_parts_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wandb-workspace", name]) == 2
    assert "wandb-workspace ENTITY/PROJECT" in capsys.readouterr().err
