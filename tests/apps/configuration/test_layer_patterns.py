"""Layers that the command line names by a regular expression."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_compress.cli.main import main

QUICK = (
    "model=mlp", "model.net.hidden=[16]", "trainer.max_epochs=1", "trainer.limit_train_batches=8", "logger=none",
    "pruning=uniform", "pruning.every=1", "export=default", "export.formats=[packed]", "export.latency=false",
    "trainer.enable_progress_bar=false",
)  # fmt: skip


def test_a_list_of_overrides_takes_regular_expressions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = 'pruning.overrides=[{pattern: "re:.*layers\\.[1].*", final_sparsity: 0.5}]'
    assert main(["train", *QUICK, listed, "hydra.run.dir=run"]) == 0
    report = json.loads((tmp_path / "run" / "compressed" / "report.json").read_text())
    found = {row["name"]: row["sparsity"] for row in report["layers"] if len(row["shape"]) == 2}
    assert found == {"net.layers.1.weight": 0.5, "net.layers.3.weight": pytest.approx(0.8, abs=0.01)}


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("[{final_sparsity: 0.5}]", "pruning.overrides[0]: expected {pattern:"),
        ("[{pattern: a, final_sparsity: 0.5}, {pattern: a}]", "pruning.overrides[1].pattern: expected a pattern that"),
        ("{re:.*a: {}}", "A pattern that is no plain name goes into a list: 'pruning.overrides=[{pattern: \"re:"),
    ],
)
def test_a_wrong_list_is_refused(
    listed: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *QUICK, f"pruning.overrides={listed}"]) == 2
    assert message in capsys.readouterr().err
