"""Graphs of strangers, run by the command: one line and an exit code, never a signal or more memory than there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.cli.main import main
from lightning_compress.export.pt2.write import _serialized

A = torch.ops.aten
SMALLEST = -(2**31)


def integers(*values: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def far(*shape: int) -> Tensor:
    return torch.full(shape, 10**9)


# What each computes from its constants, and what they are.
GRAPHS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "int32 truncating division": (lambda a, b: A.div(a, b, rounding_mode="trunc"), (integers(SMALLEST), integers(-1))),
    "int64 truncating division": (
        lambda a, b: A.div(a, b, rounding_mode="trunc"),
        (integers(-(2**63), dtype=torch.int64), integers(-1, dtype=torch.int64)),
    ),
    "division by 0": (lambda a, b: A.div(a, b, rounding_mode="floor"), (integers(5), integers(0))),
    "floor_divide": (A.floor_divide, (integers(-(2**63), dtype=torch.int64), integers(-1, dtype=torch.int64))),
    "remainder": (A.remainder, (integers(SMALLEST), integers(-1))),
    "remainder of 0": (A.remainder, (integers(5), integers(0))),
    "fmod": (A.fmod, (integers(-(2**63), dtype=torch.int64), integers(-1, dtype=torch.int64))),
    "gcd": (A.gcd, (integers(-(2**63), dtype=torch.int64), integers(-1, dtype=torch.int64))),
    "lcm of 0": (A.lcm, (integers(0), integers(0))),
    "shift": (A.bitwise_left_shift, (integers(1), integers(10**9))),
    "embedding": (A.embedding, (torch.randn(3, 4), far(1))),
    "negative embedding": (A.embedding, (torch.randn(3, 4), -far(1))),
    "embedding_bag": (lambda w, i, o: A.embedding_bag(w, i, o)[0], (torch.randn(3, 4), far(1), torch.tensor([0]))),
    "embedding_bag offsets": (
        lambda w, i, o: A.embedding_bag(w, i, o, False, 1)[0],
        (torch.randn(3, 4), torch.tensor([1, 2]), torch.tensor([0, 10**9])),
    ),
    "gather": (lambda x, i: A.gather(x, 0, i), (torch.randn(3), far(1))),
    "index_select": (lambda x, i: A.index_select(x, 0, i), (torch.randn(3, 3), far(1))),
    "index": (lambda x, i: x[i], (torch.randn(3), far(2))),
    "index_put": (lambda x, i, v: A.index_put(x, [i], v), (torch.randn(3), far(1), torch.randn(1))),
    "index_add": (lambda x, i, v: A.index_add(x, 0, i, v), (torch.randn(3), far(1), torch.randn(1))),
    "index_copy": (lambda x, i, v: A.index_copy(x, 0, i, v), (torch.randn(3), far(1), torch.randn(1))),
    "index_reduce": (lambda x, i, v: A.index_reduce(x, 0, i, v, "prod"), (torch.randn(3), far(1), torch.randn(1))),
    "scatter": (lambda x, i, v: A.scatter(x, 0, i, v), (torch.randn(3), far(1), torch.randn(1))),
    "scatter_add": (lambda x, i, v: A.scatter_add(x, 0, i, v), (torch.randn(3), far(1), torch.randn(1))),
    "take": (A.take, (torch.randn(3), far(4))),
    "one_hot": (lambda i: A.one_hot(i, 5), (far(2),)),
    "as_strided": (lambda x: A.as_strided(x, [4, 4], [1, 1], 0), (torch.randn(16),)),
    "searchsorted": (lambda x, s: A.searchsorted(x, x, sorter=s), (torch.randn(5), far(5))),
    "repeat_interleave": (A.repeat_interleave, (torch.tensor([3, -1, 2]),)),
    "repeat_interleave size": (lambda r: A.repeat_interleave(r, output_size=1), (torch.tensor([3000000, 2]),)),
    "masked_scatter": (A.masked_scatter, (torch.randn(300), torch.ones(300, dtype=torch.bool), torch.randn(300))),
    "max_unpool2d": (lambda x, i: A.max_unpool2d(x, i, [4, 4]), (torch.randn(1, 1, 2, 2), far(1, 1, 2, 2))),
    "fractional_max_pool2d": (
        lambda x, s: A.fractional_max_pool2d(x, [2, 2], [4, 4], s)[0],
        (torch.randn(1, 1, 8, 8), torch.full((1, 1, 2), 1e9)),
    ),
    "fractional_max_pool2d nan": (
        lambda x, s: A.fractional_max_pool2d(x, [2, 2], [4, 4], s)[0],
        (torch.randn(1, 1, 8, 8), torch.full((1, 1, 2), torch.nan)),
    ),
    "grid_sampler": (
        lambda x, g: A.grid_sampler(x, g, 0, 0, True),
        (torch.randn(1, 1, 4, 4), torch.full((1, 2, 2, 2), 1e38)),
    ),
    "nll_loss": (lambda x, t: A.nll_loss_forward(x, t, None, 1, -100)[0], (torch.randn(5, 3), far(5))),
    "multilabel_margin_loss": (
        lambda x, t: A.multilabel_margin_loss_forward(x, t, 1)[0],
        (torch.randn(3, 4), far(3, 4)),
    ),
    "multi_margin_loss": (A.multi_margin_loss, (torch.randn(3, 4), far(3))),
    "lu_solve": (A.linalg_lu_solve, (torch.randn(3, 3), integers(*3 * [10**8]), torch.randn(3, 2))),
    "lu_unpack": (lambda x, p: A.lu_unpack(x, p)[0], (torch.randn(3, 3), integers(*3 * [10**8]))),
    "ldl_solve": (A.linalg_ldl_solve, (torch.randn(3, 3), integers(*3 * [10**8]), torch.randn(3, 2))),
    "ormqr": (A.ormqr, (torch.randn(3, 3), torch.randn(3), torch.randn(3, 3))),
    "fake_quantize zero point": (
        lambda x, s, z: A.fake_quantize_per_channel_affine(x, s, z, 0, 0, 255),
        (torch.randn(4, 4), torch.rand(4), integers(*4 * [10**9])),
    ),
    "svd of nan": (lambda x: A.linalg_svd(x)[1], (torch.full((3, 3), torch.nan),)),
    "bincount": (lambda x: A.bincount(x, None, 1 << 20), (torch.tensor([1, 10**10]),)),
    "multinomial": (lambda x: A.multinomial(x, 10**4, True), (torch.tensor([1.0, torch.nan]),)),
    "256 GB of ones": (lambda x: A.full([1 << 36], 1.0) + x, (torch.zeros(1),)),
    "20 times 4 GB": (lambda x: torch.stack([A.full([1 << 30], 1.0) + x for _ in range(20)]), (torch.zeros(1),)),
    "another number of outputs": (lambda x: (x, x), (torch.zeros(1),)),
    "integers": (lambda x: x, (torch.zeros(1, dtype=torch.int64),)),
    "complex numbers": (lambda x: A.complex(x, x), (torch.zeros(1),)),
    "no values": (lambda x: A.zeros([4, 10], device="meta") + 0, (torch.zeros(1),)),
}


class Hostile(nn.Module):
    """Adds nothing to what the network gives, after it has computed the graph."""

    def __init__(self, graph: Callable[..., Any], constants: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.graph = graph
        for index, constant in enumerate(constants):
            self.register_buffer(f"constant_{index}", constant)

    def forward(self, x: Tensor) -> Any:
        return self.graph(*self.buffers()), x


def written(name: str, path: Path, example: Tensor) -> None:
    graph, constants = GRAPHS[name]
    harmless = tuple(constant.clone() for constant in constants)
    program = torch.export.export(Hostile(graph, harmless), (example,), strict=False)
    path.write_bytes(_serialized(program))


COMMANDS = """
import json, os, subprocess, sys
import lightning_compress.apps.verify.verify  # once for all: the commands are forks of this process
from lightning_compress.cli.main import main
for line in sys.stdin:
    path = line.strip()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        for stream in (1, 2):
            os.dup2(write, stream)
        os.close(write)
        sys.stdin = open(os.devnull)
        sys.argv = ["lightning-compress", "verify", path]
        sys.exit(main())
    os.close(write)
    said = open(read, errors="replace").read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, said]), flush=True)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "run"
    plain = ["model=mlp", "trainer.max_epochs=1", "pruning=none", "quantization=none"]
    quiet = ["trainer.enable_progress_bar=false", "export.latency=false", "logger=none", "callbacks.monitor=null"]
    export = ["export=default", "export.formats=[packed]", "dense_baseline=false"]
    assert main(["train", *plain, *quiet, *export, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def verified() -> Iterator[Callable[[Path], tuple[int, str]]]:
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": settings}
    with subprocess.Popen([sys.executable, "-c", COMMANDS], **pipes) as process:

        def verify(path: Path) -> tuple[int, str]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            code, said = json.loads(process.stdout.readline())
            return code, said

        yield verify
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_of_a_stranger_ends_in_one_line(name: str, run: Path, verified: Any) -> None:
    path = run / "compressed" / "model.pt2"
    written(name, path, torch.zeros(64, 1, 8, 8))
    code, said = verified(path)
    print(said)
    assert code == 1
    assert "Traceback" not in said
    assert "Does not hold: " in said or "ended its process by SIG" in said


def test_at_least_forty_graphs_are_tried() -> None:
    assert len(GRAPHS) >= 40
