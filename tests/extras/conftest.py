"""An export of the digits, as the guide's readers have it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def digits_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a short run of the demo leaves: ONNX, packed file and report."""
    folder = tmp_path_factory.mktemp("digits")
    command = "train experiment=demo logger=none dense_baseline=false export.latency=false trainer.max_epochs=12"
    settings = [f"hydra.run.dir={folder}", "trainer.enable_progress_bar=false"]
    subprocess.run([sys.executable, "-m", "lightning_compress.cli.main", *command.split(), *settings], check=True)
    return folder / "compressed"
