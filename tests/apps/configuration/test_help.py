"""The help of ``train`` explains what it lists."""

from __future__ import annotations

import re

import pytest

from lightning_compress import GradualMagnitudePruning
from lightning_compress.apps.configuration.help import arguments
from lightning_compress.cli.main import main
from lightning_compress.pruning import Pruner


def shown(capsys: pytest.CaptureFixture[str], *choices: str) -> str:
    assert main(["train", *choices, "--help"]) == 0
    return capsys.readouterr().out


def test_every_setting_of_the_methods_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "pruning=global", "quantization=w8a8", "export=default", "distillation=logits")
    for group in ("pruning", "quantization", "export", "distillation", "trainer", "data"):
        part = re.search(rf"^{group}:\n((?:  .*\n)+)", text, re.MULTILINE)
        assert part is not None
        settings = [line for line in part[1].splitlines() if re.match(r"  [a-z]\w*: ", line)]
        assert len(settings) > 3
        assert [line for line in settings if "  # " not in line] == []
    assert "  final_sparsity: 0.8  # Share of zeros at the end, in [0, 1)." in text
    assert "dense_baseline: false  # Train the same model without compression" in text
    assert "  max_epochs: 10  # Stop training once this number of epochs is reached." in text


def test_settings_are_those_of_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert "final_sparsity" not in shown(capsys).split("== Settings")[1].split("Exit code")[0]
    assert "pattern: channel" in shown(capsys, "pruning=channel")


def test_a_wrong_choice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "pruning=globl", "--help"]) == 2
    assert "Closest: global" in capsys.readouterr().err


def test_a_setting_of_a_group_that_is_none_names_the_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "pruning.final_sparsity=0.9"]) == 2
    assert capsys.readouterr().err.strip().endswith("pruning is none; add pruning=global.")


def test_callback_and_pruner_explain_the_same_settings_alike() -> None:
    callback, core = arguments(GradualMagnitudePruning.__doc__), arguments(Pruner.__doc__)
    assert len(callback) == 21
    assert {name: callback[name] for name in callback if name in core} == {n: core[n] for n in core if n in callback}
