"""Benchmarks that stop and go on: no finished run is lost, none is made twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import accuracy  # noqa: E402 - neighbours, not installed
import parts  # noqa: E402
import results  # noqa: E402
import tasks  # noqa: E402

from lightning_compress.apps.configuration.compose import composed  # noqa: E402
from lightning_compress.apps.configuration.settings import settings  # noqa: E402

TASK = "banking77_encoder"


class Command:
    """Stands for ``lightning-compress train``: notes its arguments, and writes a result or leaves a checkpoint."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.stop = False

    def __call__(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        self.calls.append(command)
        folder = Path(next(text for text in command if text.startswith("hydra.run.dir=")).partition("=")[2])
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        newest = folder / "checkpoints" / "last.ckpt"
        torch.save({"state_dict": {"weight": torch.ones(2)}}, newest)
        if self.stop:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        compressed = any(text.startswith("dense_checkpoint=") for text in command)
        values = {"test/acc": 0.9, **({"deployed/test/acc": 0.875, "dense/bytes": 800} if compressed else {})}
        if compressed:
            (folder / "compressed").mkdir()
            artifacts = [{"format": "onnx", "bytes": 400}, {"format": "packed", "bytes": 100}]
            (folder / "compressed" / "report.json").write_text(json.dumps({"artifacts": artifacts}))
        (folder / "result.json").write_text(json.dumps({"values": values, "checkpoint": str(newest)}))
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    stand_in = Command()
    monkeypatch.setattr(accuracy.subprocess, "run", stand_in)
    return stand_in


def test_rows_start_from_one_control_and_stand_beside_a_dense_one(command: Command, tmp_path: Path) -> None:
    runs = list(accuracy.run(accuracy.Runner(TASK, "data", tmp_path), [0, 1], "^(8|4) bits$", 1))
    assert [(run["compression"], run["seed"]) for run in runs] == [
        *((name, seed) for seed in (0, 1) for name in ("control", "dense")),
        *((name, seed) for name in ("8 bits", "4 bits") for seed in (0, 1)),
    ]
    assert (runs[-1]["accuracy"], runs[-1]["drop"], runs[-1]["times_smaller"]) == (87.5, 2.5, 8.0)
    assert len(command.calls) == 8
    starts = [text for call in command.calls for text in call if text.startswith("init_checkpoint=")]
    assert len(starts) == 6
    assert set(starts) == {
        f"init_checkpoint={tmp_path / TASK / 'control' / f'seed{seed}' / 'checkpoints' / 'last.ckpt'}"
        for seed in (0, 1)
    }
    again = list(accuracy.run(accuracy.Runner(TASK, "data", tmp_path), [0, 1], "^(8|4) bits$", 1))
    assert again == runs
    assert len(command.calls) == 8


def test_a_run_that_was_stopped_goes_on_from_its_newest_epoch(command: Command, tmp_path: Path) -> None:
    command.stop = True
    with pytest.raises(accuracy.OutOfTime):
        list(accuracy.run(accuracy.Runner(TASK, "data", tmp_path, time.monotonic() + 60), [0], "^8 bits$", 1))
    command.stop = False
    list(accuracy.run(accuracy.Runner(TASK, "data", tmp_path), [0], "^8 bits$", 1))
    resumed = [any(text.startswith("ckpt_path=") for text in call) for call in command.calls]
    assert resumed == [False, True, False, False]


def test_no_run_starts_when_the_time_is_over(command: Command, tmp_path: Path) -> None:
    with pytest.raises(accuracy.OutOfTime):
        list(accuracy.run(accuracy.Runner(TASK, "data", tmp_path, time.monotonic() - 1), [0], "", 1))
    assert command.calls == []


def test_a_control_is_known_by_its_weights_alone(tmp_path: Path) -> None:
    digests = []
    for number, (weight, epoch) in enumerate([(1.0, 1), (1.0, 2), (1.5, 1)]):
        path = tmp_path / f"{number}.ckpt"
        torch.save({"state_dict": {"weight": torch.full((2, 3), weight)}, "epoch": epoch}, path)
        digests.append(accuracy.digest(path))
    assert digests[0] == digests[1] != digests[2]


def test_parts_that_are_finished_are_not_run_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    for name in ("first", "second"):
        script = f"import sys; open('{tmp_path}/ran', 'a').write('{name} ' + ' '.join(sys.argv[1:]) + chr(10))"
        (tmp_path / "benchmarks" / f"{name}.py").write_text(
            script + (f"; sys.exit({parts.LEFT} if open('{tmp_path}/ran').read().count('second') == 1 else 0)")
        )
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(parts, "PARTS", {"a": ["first.py", "--root", "ROOT/mnist"], "b": ["second.py"]})
    assert parts.main(["--root", "data"]) == parts.LEFT
    assert (tmp_path / "ran").read_text().splitlines() == ["first --root data/mnist --write", "second --write"]
    assert parts.main(["--root", "data"]) == 0
    assert (tmp_path / "ran").read_text().splitlines()[2:] == ["second --write"]
    assert parts.main(["--root", "data"]) == 0
    assert parts.main(["--root", "data", "--minutes", "0", "a"]) == parts.LEFT
    assert len((tmp_path / "ran").read_text().splitlines()) == 3


def test_every_part_is_a_script_that_is_there() -> None:
    assert all((ROOT / "benchmarks" / script).is_file() for script, *_ in parts.PARTS.values())


@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_task_is_a_configuration_of_the_product(task: str, tmp_path: Path) -> None:
    plan = tasks.TASKS[task]
    name, row = next(iter(plan.rows.items()))
    with composed([*plan.settings, *plan.fine_tuning, *row], str(tmp_path)) as cfg:
        settings(cfg)
        assert cfg.get("pruning") or cfg.get("quantization"), name
