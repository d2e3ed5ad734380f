from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_compress import __version__
from lightning_compress.cli.main import main

QUICK = (
    "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "model=mlp",
)


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one paragraph that a refused command prints."""
    assert main(["train", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if line and not line.startswith("Error executing job with")]
    assert len(lines) == 1, printed.err
    return lines[0]


def test_help_names_the_command_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "train" in text
    assert "Exit codes: 0 done, 1 " in text


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


def test_train_help_lists_groups_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for part in (
        "pruning: 2to4, block",
        "model: classifier, cnn",
        "dense_baseline: ",
        "batch_size: ",
        "Exit code 0: done",
    ):
        assert part in text


def test_no_command_and_an_unknown_command_are_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["trian"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2


def test_json_is_all_that_goes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--json", *QUICK]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["rows"]) == {"trained"}
    assert Path(result["output_dir"]).is_dir()


def test_without_json_a_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *QUICK, "dense_baseline=true"]) == 0
    text = capsys.readouterr().out
    for part in ("test/acc", "│ dense ", "│ trained "):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("pruning=globl",),
            "error: pruning: expected one of 2to4, block, channel, erk, global, movement, none, rigl, set, taylor, "
            "uniform, got 'globl'. Closest: global.",
        ),
        (("trainer.max_epoch=1",), "error: trainer.max_epoch: there is no such setting. Closest: trainer.max_epochs"),
        (("+model.lrr=1",), "error: model.lrr: lightning_compress.models.Classifier takes no argument of that name."),
        (("model.lr=fast",), "error: model.lr: expected a number, got 'fast'."),
        (("data=mnist", "data.root=nowhere"), "error: data.root: mnist needs train-images-idx3-ubyte.gz, "),
        (("model=lenet5",), "error: LeNet5.image_size: expected at least 16 pixels, got 8."),
        (("trainer.accelerator=abacus",), "error: trainer: "),
        (("data._target_=nowhere.Data",), "error: data._target_: cannot import 'nowhere.Data'"),
    ],
)
def test_wrong_use_is_one_paragraph_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert error_of(capsys, *arguments).startswith(message)


def test_debug_shows_where_an_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--debug", "pruning=globl"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_every_job_of_a_multirun_has_its_own_directory_and_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-m", *QUICK, "seed=0,1", "hydra.sweep.dir=sweep", "logger=none"]) == 0
    results = [json.loads((Path("sweep") / str(job) / "result.json").read_text()) for job in (0, 1)]
    assert results[0]["values"] != results[1]["values"]
    assert capsys.readouterr().out.count("Written to") == 2


def test_misspelt_settings_are_answered_without_loading_torch() -> None:
    code = (
        "import sys\nfrom lightning_compress.cli.main import main\n"
        "assert main(['train', 'pruning=globl']) == 2\n"
        "print([name for name in ('torch', 'lightning', 'wandb', 'onnx') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_home_directory_in_an_override_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["train", "data=fashion_mnist", "data.root=~/my data", "model=mlp", "logger=none"]) == 2
    assert str(tmp_path / "my data") in capsys.readouterr().err


def test_an_override_that_hydra_cannot_read_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "data.root=a;b(c"]) == 2
    error = capsys.readouterr().err
    assert "data.root=a;b(c: expected key=value as Hydra reads it" in error
    assert "key='value'" in error
