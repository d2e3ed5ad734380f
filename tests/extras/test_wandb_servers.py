"""W&B's own patience makes these slow, so they stand with the extras."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from wandb_runs import read_runs


@pytest.mark.parametrize("answers", [True, False], ids=["hangs", "refuses"])
def test_training_goes_on_offline_beside_a_server_that_hangs_or_refuses(tmp_path: Path, answers: bool) -> None:
    with socket.socket() as server, (tmp_path / "log").open("w") as log:
        server.bind(("127.0.0.1", 0))
        if answers:
            server.listen(8)
        surroundings = {
            **os.environ,
            "WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}",
            "WANDB_API_KEY": "0" * 40,
        }
        surroundings.pop("WANDB_MODE", None)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "lightning_compress.cli.main", "train", "logger=wandb"),
                *("logger.wandb.offline=false", "logger.wandb.settings.init_timeout=1", "threads=1", "trainer=cpu"),
                *("+logger.wandb.settings.x_graphql_timeout_seconds=1", "hydra.run.dir=.", "model=mlp"),
                *("+logger.wandb.settings.x_graphql_retry_max=0", "model.net.hidden=[8]", "trainer.max_epochs=1"),
                *("trainer.limit_train_batches=2", "trainer.enable_progress_bar=false"),
            ],
            cwd=tmp_path,
            env=surroundings,
            # Not a pipe: W&B's own process may keep it open for minutes after the command has ended.
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=400,
        )
    printed = (tmp_path / "log").read_text()
    assert done.returncode == 0, printed
    assert "W&B cannot be reached" in printed
    (found,) = [run for run in read_runs(tmp_path) if run.history]
    assert found.series("train/loss_epoch") or found.series("val/acc")
