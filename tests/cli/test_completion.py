from __future__ import annotations

import pytest

from lightning_compress.cli.main import main

NAMES = {
    "train",
    "doctor",
    "advise",
    "calibrate",
    "compare",
    "bench",
    "inspect",
    "verify",
    "wandb-sweep",
    "wandb-workspace",
}


def suggestions(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a shell gets that asks as Hydra's script for bash does."""
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("lightning-compress ", NAMES),
        ("lightning-compress in", {"inspect"}),
        (
            "lightning-compress train quantization=w8a8",
            {f"quantization=w8a8{end}" for end in ("", "_symmetric", "_tensor")},
        ),
        ("/usr/local/bin/lightning-compress doctor pruning=r", {"pruning=rigl"}),
        ("lightning-compress train data=digits trainer.max_ep", {"trainer.max_epochs="}),
        ("lightning-compress inspect model.o", set()),
    ],
)
def test_a_shell_gets_subcommands_groups_and_settings(
    line: str, found: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(suggestions(line, monkeypatch, capsys)) == found


def test_the_script_for_bash_registers_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-sc", "install=bash"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("hydra_bash_completion lightning-compress")
