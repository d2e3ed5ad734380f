"""The zoo: its quick architectures go the whole way, and its instrument tells a wrong file from a right one."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import architectures  # noqa: E402 - neighbours, not installed
import clients  # noqa: E402
import results  # noqa: E402
import zoo  # noqa: E402
import zoo_job  # noqa: E402
import zoo_layers  # noqa: E402
from architectures.architecture import Architecture  # noqa: E402

from lightning_compress import quantization  # noqa: E402
from lightning_compress.export import to_onnx  # noqa: E402
from lightning_compress.export.onnx.session import OnnxModel  # noqa: E402

KNOWN = architectures.all_architectures()
QUICK = [name for name, architecture in KNOWN.items() if architecture.quick]


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_architecture_goes_the_whole_way(name: str, tmp_path: Path) -> None:
    row: dict[str, Any] = {}
    zoo_job.measure(KNOWN[name], tmp_path, row)
    assert zoo.whole(row), row
    assert row["batch"] == "free"


def test_the_zoo_holds_150_architectures_of_many_packages() -> None:
    assert len(KNOWN) >= 150
    assert len({architecture.distribution for architecture in KNOWN.values()}) >= 8


@pytest.fixture
def result_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setattr(zoo, "RESULT", tmp_path / "zoo.json")
    return tmp_path / "zoo.json"


def test_rows_are_merged_in_the_order_of_the_zoo_and_a_page_is_made_of_them(result_file: Path) -> None:
    second, first = QUICK[1], QUICK[0]
    good = {
        "stage": "done",
        "packed": True,
        "loaded": True,
        "equal": True,
        "keys": True,
        "share": 1.0,
        "steps": 0.1,
        "near": 1.0,
    }
    for name, row in ((second, good), (first, {"stage": "write onnx", "error": "Error: a < b"}), (second, good)):
        zoo.merge({"network": name, **row, "whole": zoo.whole(row), "date": "2026-12-01"})
    assert [row["network"] for row in json.loads(result_file.read_text())["rows"]] == [first, second]
    page = zoo.page(list(zoo.rows().values()))
    assert "1 of 2 architectures whole" in page
    assert f"{len(KNOWN) - 2} of the zoo's {len(KNOWN)} architectures are not measured yet" in page
    assert f"**{first}** (write onnx): Error: a &lt; b" in page


class Scaled(nn.Module):
    """Its outputs, and its files', can be put out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.scale


def test_a_file_that_says_something_else_is_not_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = Architecture("test: scaled", "torch", Scaled, lambda batch: (torch.randn(batch, 4),))
    write = zoo_job.written

    def written_wrong(network: Scaled, inputs: Any, path: Path) -> tuple[Path, str]:
        network.scale.fill_(1.1)
        file = write(network, inputs, path)
        network.scale.fill_(1.0)
        return file

    monkeypatch.setattr(zoo_job, "written", written_wrong)
    row: dict[str, Any] = {}
    zoo_job.measure(architecture, tmp_path, row)
    assert row["near"] < 0.5
    assert not zoo.whole(row)


def test_layer_by_layer_a_file_is_compared_from_the_trained_models_own_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(32, 4)
    quantization.prepare(model, example_inputs=x)(x)
    model.eval()
    file = to_onnx(model, x, tmp_path / "model.onnx").path
    expected = zoo_job.outputs(model, x)

    def found(path: Path) -> zoo_layers.Layerwise:
        return zoo_layers.layerwise(path, model, x, OnnxModel(path, model.forward).feed(x))

    right = found(file)
    assert (right.tensors, right.other, right.off, right.wrong) == (3, 0.0, 0, ())
    torch.testing.assert_close(right.outputs[0], expected[0], rtol=1e-4, atol=1e-5)

    broken = onnx.load(file)
    bias = next(item for item in broken.graph.initializer if item.name == "0.bias_integers")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 3000, bias.name))
    onnx.save(broken, tmp_path / "broken.onnx")
    session = OnnxModel(tmp_path / "broken.onnx", model.forward)
    assert zoo_job.near(zoo_job.differences(session(x), expected)) < 0.99
    wrong = found(tmp_path / "broken.onnx")
    # The first layer alone: what stands behind it is given the right integers.
    assert len(wrong.wrong) == 1
    assert wrong.off > 1
    torch.testing.assert_close(wrong.outputs[0], expected[0], rtol=1e-4, atol=1e-5)


def test_what_is_refused_before_training_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Steers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer(x)
            return x if float(x.sum()) > 0 else -x

    found = {}
    for name, build in (("steers", Steers), ("empty", nn.Identity)):
        architecture = Architecture(f"test: {name}", "torch", build, lambda batch: (torch.randn(batch, 4),))
        monkeypatch.setattr(zoo_job, "all_architectures", lambda one=architecture: {one.name: one})
        zoo_job.main(architecture.name, tmp_path / f"{name}.json")
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert (found["steers"]["stage"], found["steers"]["refused"]) == ("write onnx", True)
    assert (found["empty"]["stage"], found["empty"]["refused"]) == ("prepare", True)


def test_what_a_network_raises_stands_in_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> nn.Module:
        raise RuntimeError("no such network")

    name = QUICK[0]
    monkeypatch.setattr(zoo_job, "all_architectures", lambda: {name: dataclasses.replace(KNOWN[name], build=broken)})
    zoo_job.main(name, tmp_path / "row.json")
    row = json.loads((tmp_path / "row.json").read_text())
    assert (row["stage"], row["error"]) == ("build", "RuntimeError: no such network")


def test_differences_are_counted_in_steps_of_the_outputs_span() -> None:
    expected = [torch.tensor([0.0, 255.0, float("-inf")]), torch.tensor([3])]
    off = zoo_job.differences([torch.tensor([1.5, 255.0, float("-inf")]), torch.tensor([3])], expected)
    assert off.tolist() == [0, 1.5, 0, 0, 0]
    assert zoo_job.differences([expected[0], torch.tensor([4])], expected).max() == float("inf")
    assert zoo_job.differences([torch.tensor([0.0, 255.0, 7.0]), expected[1]], expected).max() == float("inf")
    with pytest.raises(ValueError, match="shape"):
        zoo_job.differences([torch.zeros(2), torch.tensor([3])], expected)


def test_a_library_works_when_every_run_does() -> None:
    run = {
        "predicts": True, "checkpoint": True, "steps": 9, "files": ["model.onnx", "model.packed"],
        "agreement": 1.0, "stays_float": ["a"], "failures": [], "same_keys": True,
    }  # fmt: skip
    failed = {**run, "files": ["model.packed"], "failures": ["onnx was not written: on purpose"]}
    found = {
        "version": "x 1", "lines": "…", "alone": {}, "prune": run, "qat": run, "both": run, "failing": failed,
        "step_seconds": {"alone": [0.01, 0.02, 0.01], "both": [0.02, 0.03, 0.03]},
    }  # fmt: skip
    row = clients.row("chemprop", found)
    assert clients.works(row)
    assert (row["ratio"], row["ratio_low"], row["ratio_high"], row["step_ms"]) == (2.0, 1.5, 3.0, 10.0)
    assert (row["stays_float"], row["survives"], row["error"]) == (1, True, None)
    failing = clients.row("chemprop", {**found, "qat": {**run, "files": [], "failures": ["onnx: no"]}})
    assert not clients.works(failing)
    assert failing["error"] == "qat: onnx: no"
    for lost in ({"predicts": False}, {"failures": []}, {"files": []}, {"files": run["files"]}):
        assert clients.row("chemprop", {**found, "failing": {**failed, **lost}})["survives"] is False


def test_a_library_that_is_refused_works_when_the_remedy_does() -> None:
    run = {
        "predicts": True, "checkpoint": True, "files": ["model.packed"], "same_keys": True, "refused": "onnx: no",
        "failures": ["onnx was not written: no"],
    }  # fmt: skip
    found = {"version": "x 1", "lines": "…", "alone": {}, "prune": run, "qat": run, "both": run, "failing": run}
    row = clients.row("chemprop", found)
    assert clients.works(row)
    assert (row["refused"], row["survives"], row["error"]) == ("onnx: no", None, None)
    for lost in ({"predicts": False}, {"files": []}, {"error": "no"}):
        assert not clients.works(clients.row("chemprop", {**found, "both": {**run, **lost}}))


def test_a_checkpoint_that_needs_this_package_is_noticed(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import torch, client_job\n"
        "from lightning_compress.timeline import Run\n"
        "torch.save({'a': torch.ones(1), 'lightning_compress.b': 2}, sys.argv[2])\n"
        "torch.save({'run': Run(1, 1)}, sys.argv[3])\n"
        "print([client_job.names_us(path) for path in sys.argv[2:]])"
    )
    paths = [str(tmp_path / name) for name in ("own.ckpt", "ours.ckpt")]
    command = [sys.executable, "-c", program, str(ROOT / "benchmarks"), *paths]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[False, True]"
