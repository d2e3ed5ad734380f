"""The pages of the deployment guide that need optional packages say what works."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from guide_pages import code, run, trained_digits

from lightning_compress.export.compressed_tensors import save_compressed_tensors
from lightning_compress.export.executorch.write import to_executorch
from lightning_compress.export.litert.write import to_litert
from lightning_compress.export.openvino import to_openvino
from lightning_compress.models import SmallCNN, TransformerEncoder


@pytest.mark.parametrize(
    ("page", "write", "file", "without"),
    [
        pytest.param("openvino.md", to_openvino, "model.xml", ("torch", "lightning_compress"), id="openvino"),
        pytest.param("litert.md", to_litert, "model.tflite", ("torch", "lightning_compress"), id="litert"),
        pytest.param("executorch.md", to_executorch, "model.pte", ("lightning_compress",), id="executorch"),
    ],
)
def test_the_page_answers_as_the_model(
    page: str, write: object, file: str, without: tuple[str, ...], tmp_path: Path
) -> None:
    digits = trained_digits(tmp_path, SmallCNN(1, 10, 8), backend=page.removesuffix(".md"))
    write(digits.model, digits.x[:2], tmp_path / "compressed" / file)
    run(code(page) + "\nnp.save('classes.npy', classes)", tmp_path, without=without)
    assert (np.load(tmp_path / "classes.npy") == digits.answers).mean() >= 0.99


def test_the_page_on_compressed_tensors_gives_the_models_scores(tmp_path: Path) -> None:
    digits = trained_digits(tmp_path, TransformerEncoder(1, 8, 10, patch=2))
    save_compressed_tensors(digits.model, tmp_path / "compressed" / "model.safetensors")
    run(code("compressed_tensors.md") + "\ntorch.save(logits, 'logits.pt')", tmp_path)
    with torch.no_grad():
        expected = digits.model(torch.zeros(1, 1, 8, 8))
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert (found - expected).abs().mean() <= 0.1 * expected.abs().mean()
