"""``.tflite`` files in the interpreter for microcontrollers. Collected by ``make test-extras``: needs tflite-micro."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_compress import CompressionError
from lightning_compress.cli.main import main
from lightning_compress.export.litert.micro import micro_memory
from lightning_compress.export.litert.run import LiteRTModel
from lightning_compress.export.litert.write import to_litert
from lightning_compress.models import SmallCNN
from lightning_compress.quantization import calibrate


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return calibrate(SmallCNN(1, 5, width=8).eval(), [torch.randn(32, 1, 8, 8)], backend="litert")


def test_the_interpreter_gives_the_reference_kernels_integers(network: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(64, 1, 8, 8)
    to_litert(network, x[:1], tmp_path / "model.tflite", values="int8")
    (micro,), (reference,) = (
        LiteRTModel(tmp_path / "model.tflite", network.forward, kernels=kernels)(x)
        for kernels in ("micro", "reference")
    )
    assert torch.equal(micro, reference)
    with torch.no_grad():
        assert (micro.argmax(1) == network(x).argmax(1)).float().mean() >= 0.95


def test_the_file_runs_in_the_arena_that_is_said_and_in_none_much_smaller(network: nn.Module, tmp_path: Path) -> None:
    to_litert(network, torch.randn(1, 1, 8, 8), tmp_path / "model.tflite", values="int8", layout="channels_last")
    memory = micro_memory(tmp_path / "model.tflite")
    assert memory.flash == (tmp_path / "model.tflite").stat().st_size
    assert memory.arena is not None
    program = (
        "import sys; from tflite_micro.python.tflite_micro import runtime; "
        "runtime.Interpreter.from_file(sys.argv[1], arena_size=int(sys.argv[2])).invoke()"
    )
    for arena, runs in ((memory.arena, True), (memory.arena // 2, False)):
        # In a process of its own, which too small an arena may end.
        command = [sys.executable, "-c", program, str(tmp_path / "model.tflite"), str(arena)]
        assert (subprocess.run(command, capture_output=True, check=False).returncode == 0) is runs


def test_an_operator_that_it_lacks_is_named(tmp_path: Path) -> None:
    class Unusual(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.atan2(x, 1 - x)

    to_litert(Unusual(), torch.rand(1, 4), tmp_path / "model.tflite")
    memory = micro_memory(tmp_path / "model.tflite")
    assert memory.arena is None
    assert memory.unsupported == ("ATAN2",)
    with pytest.raises(CompressionError, match="it has no kernel for ATAN2"):
        LiteRTModel(tmp_path / "model.tflite", Unusual().forward, kernels="micro")


def test_bench_times_the_file_and_says_what_it_needs(
    network: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to_litert(network, torch.randn(1, 1, 8, 8), tmp_path / "model.tflite")
    assert main(["bench", "--json", str(tmp_path / "model.tflite"), "--seconds", "0.1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["latency_ms"]["median"] > 0
    assert found["microcontroller"]["arena"] == micro_memory(tmp_path / "model.tflite").arena
    assert main(["bench", str(tmp_path / "model.tflite"), "--batch-size", "2"]) == 2
    assert "--batch-size: expected 1, which" in capsys.readouterr().err
