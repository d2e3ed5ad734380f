"""Full disks and closed places: one line, and the old files whole."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning_modules import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import CompressedExport, CompressionError
from lightning_compress.cli.main import main
from lightning_compress.foundation.checksum import sha256


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(100, 100)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond a size, as on a disk that fills up while it is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fit(folder: Path, **settings: object) -> None:
    export = CompressedExport(folder, formats=["packed"], verify=False, latency=False, **settings)
    data = DataLoader(TensorDataset(torch.randn(8, 100)), 4)
    quiet_trainer(max_epochs=1, callbacks=[export]).fit(Module(), data)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir() if path.is_file()}


def test_weights_that_do_not_fit_on_the_disk_are_one_error_before_training(tmp_path: Path) -> None:
    with largest_file(10_000), pytest.raises(CompressionError, match=r"dense\.safetensors: cannot be written"):
        fit(tmp_path)
    assert digests(tmp_path).keys() == {"manifest.json"}


def test_an_export_that_does_not_fit_leaves_the_old_one_whole(tmp_path: Path) -> None:
    fit(tmp_path / "out")
    torch.save(Module().state_dict(), tmp_path / "dense.pt")
    before = digests(tmp_path / "out")
    assert {"model.packed", "report.json"} <= before.keys()
    with largest_file(10_000), pytest.raises(CompressionError, match=r"report\.html: cannot be written"):
        fit(tmp_path / "out", dense=tmp_path / "dense.pt", on_error="raise")
    assert digests(tmp_path / "out") == before


@pytest.mark.parametrize("setting", ["hydra.run.dir", "export.dirpath"])
def test_a_place_that_is_closed_is_one_line_and_exit_code_two(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no directory")
    arguments = ["model=mlp", "logger=none", "trainer.max_epochs=1", "export=default"]
    assert main(["train", *arguments, f"{setting}='{tmp_path}/file/below'"]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "file" in errors[0]
