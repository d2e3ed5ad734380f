"""Several processes under FSDP2 (gloo), started as a launcher starts them; one start for all tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fsdp_run import SETTINGS, STEPS, same
from patience import HANG_SECONDS


def started(folder: Path, world: int) -> list[dict[str, Any]]:
    """What each of so many processes found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("fsdp_run.py")), str(folder)]
    common = {
        **os.environ,
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world), "NODE_RANK": "0"},
        "OMP_NUM_THREADS": "1",
    }
    logs = [folder / f"{rank}.log" for rank in range(world)]
    processes = []
    for rank, path in enumerate(logs):
        with path.open("w") as log:
            environment = {**common, "LOCAL_RANK": str(rank), "RANK": str(rank)}
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=HANG_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * world, "\n".join(log.read_text() for log in logs)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("fsdp")
    return folder, started(folder, 2)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return started(tmp_path_factory.mktemp("four"), 4)


@pytest.mark.parametrize(("settings", "processes"), [*((name, 2) for name in SETTINGS), ("global", 4), ("uniform", 4)])
def test_shards_are_pruned_as_one_process_prunes_the_whole(
    ranks: Any, four: list[dict[str, Any]], settings: str, processes: int
) -> None:
    for found in ranks[1] if processes == 2 else four:
        assert found[settings]["equal"]
        sharded, whole = found[settings]["sparsity"]
        assert sharded == whole > 0.4
        assert found[settings]["targets"]
        assert found[settings]["dead"]
        assert found[settings]["churn"]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_state_goes_on_in_any_number_of_processes(ranks: Any, settings: str) -> None:
    for found in ranks[1]:
        assert found[settings]["state"]
        assert found[settings]["resumed"]


@pytest.mark.parametrize(("whole", "resumed"), [("fit", "resumed"), ("distributed", "distributed_resumed")])
def test_a_fit_reaches_its_sparsity_and_a_resumed_one_ends_in_the_same_bits(
    ranks: Any, whole: str, resumed: str
) -> None:
    first, second = ranks[1]
    for what in ("masks", "weights"):
        assert same(first[whole][what], second[whole][what])
        assert same(first[whole][what], first[resumed][what])
    assert sum(int((~mask).sum()) for mask in first[whole]["masks"].values()) == round(0.8 * 1253)
    # Some that grew again have had no gradient yet and are zero, too.
    assert first[whole]["sparsity"] == pytest.approx(0.8, abs=0.0025)
    for name, mask in first[whole]["masks"].items():
        assert not first[whole]["weights"][name][~mask].any()


def test_a_mask_update_takes_as_many_collectives_for_any_number_of_layers_and_other_steps_take_none(ranks: Any) -> None:
    for (few, between), (many, _) in ranks[1][0]["collectives"].values():
        assert few == many <= 5
        assert between == 0


def test_a_forward_through_gathered_weights_shows_what_is_a_weight(ranks: Any) -> None:
    assert ranks[1][0]["recorded"] == ["0.weight", "2.weight", "4.weight", "6.weight"]


def test_what_shards_cannot_do_is_refused_in_every_process(ranks: Any) -> None:
    for found in ranks[1]:
        assert "Pruner.pattern: 'channel' has to see and trace whole weights" in found["channel"]
        assert "processes hold 8 rows each, not a multiple of the pattern's 16" in found["rows"]
    assert STEPS == 6
