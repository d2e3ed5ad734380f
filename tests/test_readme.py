"""What README shows is run."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_modules import PlainModule, loader
from networks import ResidualNet
from torch import nn

import lightning_compress

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_in_tmp")
def test_the_callbacks_of_the_readme_train_and_export() -> None:
    module = PlainModule()
    names: dict[str, Any] = {"module": module, "datamodule": None}
    block = next(block for block in BLOCKS if "trainer = L.Trainer" in block)
    settings = "max_epochs=2, accelerator='cpu', logger=False, enable_progress_bar=False, enable_checkpointing=False, "
    block = block.replace("max_epochs=30,", settings).replace("every=10", "every=2")
    block = block.replace("trainer.fit(module, datamodule)", "trainer.fit(module, loader(), loader(2, seed=1))")
    exec(block, {**names, "loader": loader})
    assert {"model.onnx", "model.packed", "report.html"} <= set(os.listdir("compressed"))


@pytest.mark.usefixtures("_in_tmp")
def test_the_plain_loop_of_the_readme_runs() -> None:
    block = next(block for block in BLOCKS if "pruning.Pruner" in block)
    model = ResidualNet()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def one_step(x: torch.Tensor, y: torch.Tensor) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    block = block.replace("...  #", "one_step(x, y)  #")
    batches = list(loader(4)) * 2
    names = {"model": model, "x": batches[0][0], "batches": batches, "one_step": one_step}
    exec(block.replace("end=1000, every=100", "end=6, every=2"), names)
    assert {"model.onnx", "model.packed"} <= set(os.listdir())
    assert names["pruner"].sparsity() == pytest.approx(0.8, abs=1e-3)


def test_every_public_name_can_be_imported() -> None:
    for name in lightning_compress.__all__:
        assert getattr(lightning_compress, name) is not None


def test_every_file_that_the_readme_links_to_exists() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / link).exists(), link
