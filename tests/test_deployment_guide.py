"""The pages of the deployment guide that need no optional package say what works."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from guide_pages import ROOT, Digits, code, run, trained_digits

from lightning_compress.export import save_packed, to_onnx
from lightning_compress.export.pt2.write import to_torch_export
from lightning_compress.models import SmallCNN
from lightning_compress.quantization import find

NO_TORCH = ("torch", "lightning", "lightning_compress")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guide")


@pytest.fixture(scope="module")
def digits(folder: Path) -> Digits:
    torch.manual_seed(0)
    return trained_digits(folder, SmallCNN(1, 10, 8), backend="onnxruntime")


def test_onnx_runtime_answers_as_the_model_without_pytorch(folder: Path, digits: Digits) -> None:
    to_onnx(digits.model, digits.x[:2], folder / "compressed" / "model.onnx")
    run(code("onnxruntime.md") + "\nnp.save('classes.npy', classes)", folder, without=NO_TORCH)
    assert (np.load(folder / "classes.npy") == digits.answers).mean() >= 0.99


def test_the_program_for_small_devices_needs_onnxruntime_and_numpy_alone(
    folder: Path, digits: Digits, tmp_path: Path
) -> None:
    to_onnx(digits.model, digits.x[:2], tmp_path / "model.onnx")
    shutil.copy(folder / "compressed" / "report.json", tmp_path)
    pixels = np.load(folder / "pixels.npy")[:3]
    for k, image in enumerate(pixels):
        np.save(tmp_path / f"{k}.npy", image)
    said = run(code("edge.md"), tmp_path, without=(*NO_TORCH, "onnx"), arguments=["0.npy", "1.npy", "2.npy"])
    assert said.splitlines() == [f"{k}.npy {digits.answers[k]}" for k in range(3)]


def test_the_plain_reader_finds_the_weights_of_the_packed_file(folder: Path, digits: Digits) -> None:
    save_packed(digits.model, folder / "compressed" / "model.packed")
    shutil.copy(ROOT / "tests" / "export" / "packed" / "plain_packed_reader.py", folder)
    keep = "\n        np.save(name, weight)"
    shown = code("packed.md")
    said = run(shown.rstrip() + keep, folder, without=NO_TORCH)
    for name, quantizer in find(digits.model).layers.items():
        assert name in said
        np.testing.assert_allclose(
            np.load(folder / f"{name}.npy"), quantizer.fake_quantize().detach().numpy(), rtol=1e-6, atol=1e-9
        )


def test_pytorch_alone_loads_the_exported_program(folder: Path, digits: Digits) -> None:
    to_torch_export(digits.model, digits.x[:2], folder / "compressed" / "model.pt2")
    said = run(code("pytorch.md") + "\nprint(tuple(logits.shape))", folder, without=("lightning_compress",))
    assert said.split("\n")[0] == "(4, 10)"
