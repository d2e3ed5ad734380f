from __future__ import annotations

import argparse
import hashlib
import json
import math
import zlib
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import onnx
import pytest
import torch
from lightning_modules import PlainModule, loader, quiet_trainer
from networks import Mlp
from reports import example_report
from safetensors.torch import save_file
from torch import nn

from lightning_compress import CompressionError, GradualMagnitudePruning, QuantizationAwareTraining
from lightning_compress.cli.inspect import add_inspect
from lightning_compress.export import save_packed, to_onnx
from lightning_compress.quantization import find, prepare


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add_inspect(parser.add_subparsers())
    parsed = parser.parse_args(["inspect", *map(str, arguments)])
    code: int = parsed.command(parsed, [])
    return code


def found(capsys: pytest.CaptureFixture[str], path: Path, code: int = 0) -> dict[str, Any]:
    """What ``inspect --json`` prints."""
    capsys.readouterr()
    assert run(path, "--json") == code
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def row(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(item for item in result["tensors"] if item["name"] == name)


@pytest.fixture
def quantized() -> nn.Module:
    """A trained network, half of whose first weight is zero."""
    model = Mlp()
    with torch.no_grad():
        model[1].weight[:, ::2] = 0
    prepare(model, weight_bits=4, first_last_bits=None, example_inputs=torch.randn(8, 12))
    model.train()(torch.randn(8, 12))
    return model.eval()


def test_a_checkpoint_shows_zeros_types_and_what_compressed_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callbacks: list[L.Callback] = [
        GradualMagnitudePruning(0.5, start=0, end=2, distribution="uniform"),
        QuantizationAwareTraining(weight_bits=8),
    ]
    trainer = quiet_trainer(max_steps=4, callbacks=callbacks, num_sanity_val_steps=0)
    trainer.fit(PlainModule(), loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    result = found(capsys, tmp_path / "last.ckpt")
    weight = row(result, "net.block1.conv1.weight")
    assert (weight["sparsity"], weight["bits"], weight["dtype"]) == (0.5, 32, "float32")
    assert result["facts"]["global step"] == "4"
    assert "final_sparsity 0.5" in result["facts"]["GradualMagnitudePruning"]
    assert result["facts"]["QuantizationAwareTraining"].endswith("; acts")
    assert result["totals"]["bytes"] == (tmp_path / "last.ckpt").stat().st_size


def test_tied_weights_of_a_checkpoint_count_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    model["b"].weight = model["a"].weight
    torch.save(model.state_dict(), tmp_path / "tied.pt")
    assert found(capsys, tmp_path / "tied.pt")["totals"]["elements"] == 16


def test_safetensors_bytes_and_zip_are_those_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"w": torch.eye(8), "n": torch.arange(3)}, tmp_path / "state.safetensors")
    result = found(capsys, tmp_path / "state.safetensors")
    data = (tmp_path / "state.safetensors").read_bytes()
    assert result["totals"]["bytes"] == len(data)
    assert result["totals"]["zipped_bytes"] == len(zlib.compress(data, 6))
    assert (row(result, "w")["zeros"], row(result, "n")["floating"]) == (56, False)


def test_a_packed_file_is_read_as_the_integers_it_holds(
    quantized: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = save_packed(quantized, tmp_path / "model.packed")
    result = found(capsys, tmp_path / "model.packed")
    weight = row(result, "1.weight")
    integers = find(quantized).layers["1.weight"].integers().numpy()
    _, counts = np.unique(integers, return_counts=True)
    bound = sum(-n * math.log2(n / integers.size) for n in counts) / 8
    assert (weight["bits"], weight["zeros"]) == (4, int((integers == 0).sum()))
    assert weight["entropy_bytes"] == pytest.approx(bound)
    parts = {tensor.name: tensor.bytes for tensor in written.tensors}
    assert weight["stored_bytes"] == pytest.approx(parts["1.weight"], abs=2)
    assert result["totals"]["stored_bytes"] <= result["totals"]["bytes"]


def test_a_packed_file_is_known_by_its_content_too(
    quantized: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_packed(quantized, tmp_path / "model.safetensors")
    assert found(capsys, tmp_path / "model.safetensors")["kind"] == "packed"


def test_scales_of_an_onnx_file_count_to_their_weights(
    quantized: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to_onnx(quantized, torch.randn(8, 12), tmp_path / "model.onnx")
    result = found(capsys, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    quantizers = sum(node.op_type == "QuantizeLinear" for node in graph.node)
    assert result["facts"]["quantized activations"] == str(quantizers)
    weight = next(item for item in result["tensors"] if "1.weight" in item["name"])
    # At least half a byte for each entry, and a float32 scale for each of the 16 channels.
    assert 16 * 12 / 2 + 16 * 4 <= weight["stored_bytes"] <= 16 * 12 + 16 * 5
    assert weight["sparsity"] >= 0.5
    assert not any("scale" in item["name"] and len(item["shape"]) for item in result["tensors"])


def export(path: Path, model: nn.Module) -> Path:
    """A directory as an export leaves it."""
    path.mkdir()
    save_packed(model, path / "model.packed")
    digest = hashlib.sha256((path / "model.packed").read_bytes()).hexdigest()
    size = (path / "model.packed").stat().st_size
    content = example_report()
    content["artifacts"] = [
        {"format": "packed", "file": "model.packed", "bytes": size, "sha256": digest, "breakdown": {"all": size}}
    ]
    (path / "report.json").write_text(json.dumps(content))
    return path


def test_an_export_is_shown_by_its_report_with_its_files(
    quantized: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "240")  # a narrow console shortens long names
    path = export(tmp_path / "compressed", quantized)
    result = found(capsys, path)
    assert [item["name"] for item in result["tensors"]] == [item["name"] for item in example_report()["layers"]]
    assert result["files"]["model.packed"]["kind"] == "packed"
    assert run(path) == 0
    assert "model.packed" in capsys.readouterr().out


def test_a_file_that_is_not_the_one_of_the_report_ends_with_1(
    quantized: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = export(tmp_path / "compressed", quantized)
    save_packed(Mlp(), path / "model.packed")
    assert "its checksum differs" in found(capsys, path, code=1)["failure"]


@pytest.mark.parametrize("name", ["model.packed", "state.safetensors", "last.ckpt", "model.onnx"])
def test_a_damaged_file_ends_with_1_and_one_line(
    name: str, quantized: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if name == "model.packed":
        save_packed(quantized, path)
        path.write_bytes(path.read_bytes()[:-5])
    else:
        path.write_bytes(b"\x07nothing of the kind" * 9)
    code = 1
    if name == "last.ckpt":
        torch.save(nn.Linear(2, 2).state_dict(), path)
        path.write_bytes(path.read_bytes()[:300])
    assert str(path) in found(capsys, path, code=code)["failure"]


def test_a_checkpoint_that_would_run_code_is_refused_without_running_it(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": {"w": torch.ones(1)}, "extra": Runs()}, tmp_path / "last.ckpt")
    with pytest.raises(CompressionError, match="would execute its code"):
        run(tmp_path / "last.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "gone.onnx", "a file, or the directory of an export"),
        (lambda path: path, "with report.json"),
        (lambda path: Path(__file__), "a .ckpt, .pt, .pth, .safetensors, .packed or .onnx file"),
    ],
)
def test_what_is_no_artifact_is_wrong_use(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match=message):
        run(make(tmp_path))


def test_the_folder_of_a_run_stands_for_the_one_export_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quantized: nn.Module
) -> None:
    report, export = example_report(), tmp_path / "run" / "compressed"
    export.mkdir(parents=True)
    (export / "report.json").write_text(json.dumps({**report, "artifacts": []}))
    assert found(capsys, tmp_path / "run") == found(capsys, export)
    other = tmp_path / "run" / "other"
    other.mkdir()
    (other / "report.json").write_text(json.dumps(report))
    with pytest.raises(CompressionError, match=r"Give one of .*compressed, .*other"):
        run(tmp_path / "run")


def test_no_name_in_a_file_reaches_the_terminal_as_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"fc\x1b[2J\x9b\u202e.weight": torch.ones(2, 2)}, tmp_path / "w.safetensors")
    assert run(tmp_path / "w.safetensors") == 0
    shown = capsys.readouterr().out
    assert not set(shown) & set("\x1b\x9b\u202e")
    assert "x1b" in shown
