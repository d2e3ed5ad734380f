"""docs/own_project.md: every file of the page is written, and its commands are run, on tiny data."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_compress.cli.main import main

PAGE = (Path(__file__).parents[1] / "docs" / "own_project.md").read_text(encoding="utf-8")
SHORT = ["trainer.max_epochs=2", "trainer.accelerator=cpu", "logger=none", "trainer.enable_progress_bar=false"]


def images(folder: Path) -> None:
    """Dark cats and bright dogs."""
    for name, level in (("cat", 40), ("dog", 200)):
        (folder / "photos" / name).mkdir(parents=True)
        for index in range(40):
            pixels = np.clip(np.random.default_rng(index).normal(level, 30, (20, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{index}.png")


def table(folder: Path) -> None:
    """Four columns, of which the largest of the first three is the class."""
    x = np.random.default_rng(0).normal(size=(120, 4))
    rows = np.column_stack([x, x[:, :3].argmax(1)])
    np.savetxt(folder / "rows.csv", rows, delimiter=",", header="a,b,c,d,class", comments="")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("module", "data"), [("my_images", images), ("my_table", table)])
def test_own_data_trains_and_exports(module: str, data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data(tmp_path)
    for name, block in re.findall(r"`(my_\w+\.py)`[^`]*?```python\n(.*?)```", PAGE, flags=re.DOTALL):
        (tmp_path / name).write_text(block)
    commands = re.findall(r"```\n(lightning-compress train .*?)```", PAGE, flags=re.DOTALL)
    (command,) = [text.replace("\\\n", " ") for text in commands if module in text]
    assert main([*shlex.split(command)[1:], *SHORT, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    report = json.loads((tmp_path / "run" / "compressed" / "report.json").read_text())
    assert {artifact["format"] for artifact in report["artifacts"]} >= {"onnx", "packed"}
    assert report["agreement"] is not None
