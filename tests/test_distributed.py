"""Two processes under DDP (gloo), started as a launcher starts them; one start for all tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import HANG_SECONDS

RANKS = (0, 1)
EQUAL = ("masks", "weights", "ranges", "scales")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], list[str]]:
    """The folder, what each rank has, and what each rank wrote to standard error."""
    folder = tmp_path_factory.mktemp("ddp")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("distributed_run.py")), str(folder)]
    logs = [folder / f"{rank}.log" for rank in RANKS]
    processes = []
    for rank in RANKS:
        with logs[rank].open("w") as log:
            environment = {**common, "LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=HANG_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    written = [log.read_text() for log in logs]
    assert codes == [0, 0], "\n".join(written)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in RANKS], written


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("what", EQUAL)
def test_all_ranks_have_the_same(ranks: Any, what: str) -> None:
    _, (first, second), _ = ranks
    for fit in ("whole", "resumed"):
        assert first[fit][what]
        assert same(first[fit][what], second[fit][what])


def test_sparsity_is_reached(ranks: Any) -> None:
    masks = ranks[1][0]["whole"]["masks"]
    kept = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    assert kept == pytest.approx(0.25, abs=0.01)


def test_packed_files_are_equal_to_the_byte(ranks: Any) -> None:
    _, (first, second), _ = ranks
    assert first["whole"]["packed"] == second["whole"]["packed"]


def test_only_rank_zero_exports_and_prints(ranks: Any) -> None:
    folder, _, written = ranks
    for fit in ("whole", "resumed"):
        assert {"model.packed", "report.json"} <= {file.name for file in (folder / fit / "export0").iterdir()}
        assert not (folder / fit / "export1").exists()
    assert "sparsity 0.75" in written[0]
    assert "sparsity 0.75" not in written[1]


@pytest.mark.parametrize("what", [*EQUAL, "packed", "history"])
def test_a_resumed_fit_ends_as_one_that_was_not_stopped(ranks: Any, what: str) -> None:
    for rank in ranks[1]:
        whole, resumed = rank["whole"][what], rank["resumed"][what]
        assert same(whole, resumed) if what in EQUAL else whole == resumed


def test_all_ranks_keep_the_same_best_checkpoint(ranks: Any) -> None:
    _, (first, second), _ = ranks
    assert first["whole"]["best"] == second["whole"]["best"] == "best.ckpt"
