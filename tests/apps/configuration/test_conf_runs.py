"""Nodes of the config groups, run as a user runs them: to a written file that agrees with what was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_compress.cli.main import main

QUICK = (
    *("trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=8", "threads=1"),
    *(
        "trainer.enable_progress_bar=false",
        "export=default",
        "export.formats=[packed]",
        "export.latency=false",
        "hydra.run.dir=run",
    ),
    "pruning.every=1",
)
CNN = ("model=cnn", "model.net.width=8")
MLP = ("model=mlp", "model.net.hidden=[32]")


@pytest.mark.parametrize(
    ("model", "pruning", "setting", "quantization", "bits", "more"),
    [
        (CNN, "2to4", ("pattern", "2:4"), "w8a8_symmetric", 8, ("export.formats=[onnx,packed]",)),
        (MLP, "block", ("pattern", "block:1x4"), "w4a4_learned", 4, ()),
        (CNN, "channel", ("pattern", "channel"), "w8a8_tensor", 8, ()),
        (MLP, "set", ("regrow", "random"), "weight_only", 8, ("logger=none",)),
        (MLP, "movement", ("criterion", "movement"), "w2a2_learned", 2, ("debug=profiler",)),
        (MLP, "taylor", ("criterion", "taylor"), "w3a3", 3, ("debug=overfit", "trainer.limit_train_batches=1.0")),
        (MLP, "erk", ("distribution", "erk"), "w4_group32", 4, ()),
    ],
)
def test_a_choice_of_every_kind_is_run_to_a_file_that_agrees_with_what_was_trained(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: tuple[str, ...],
    pruning: str,
    setting: tuple[str, str],
    quantization: str,
    bits: int,
    more: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    groups = (f"pruning={pruning}", f"quantization={quantization}")
    assert main(["train", *model, *groups, *QUICK, *more]) == 0
    report = json.loads(Path("run/compressed/report.json").read_text())
    assert report["agreement"] >= 0.95
    assert report["plan"]["pruning"][setting[0]] == setting[1]
    assert min(row["weight_bits"] for row in report["layers"]) == bits
    if pruning != "channel":  # whose zeros are cut out of the network
        weights = [row for row in report["layers"] if len(row["shape"]) > 1]
        zeros = sum(row["sparsity"] * row["numel"] for row in weights) / sum(row["numel"] for row in weights)
        assert zeros == pytest.approx(report["plan"]["pruning"]["final_sparsity"], abs=0.05)
    for artifact in report["artifacts"]:
        assert (Path("run/compressed") / artifact["file"]).stat().st_size == artifact["bytes"]
