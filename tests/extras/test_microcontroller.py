"""``.tflite`` files in the interpreter for microcontrollers. Collected by ``make test-extras``: needs tflite-micro."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tflite_micro.python.tflite_micro import runtime
from torch import nn

from lightning_compress import CompressionError
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
    # The recording interpreter, which Python has, keeps its records in the arena as well.
    enough = runtime.Interpreter.from_file(str(tmp_path / "model.tflite"), arena_size=memory.arena + 4096)
    enough.set_input(np.zeros((1, 8, 8, 1), np.int8), 0)
    enough.invoke()
    with pytest.raises(RuntimeError):
        runtime.Interpreter.from_file(str(tmp_path / "model.tflite"), arena_size=memory.arena // 2)


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
