"""Checkpoints in the compressed-tensors format, read by the compressed-tensors package itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from networks import Gpt, Mlp
from safetensors.torch import load_file
from torch import nn

from lightning_compress.export.compressed_tensors import load_compressed_tensors, save_compressed_tensors
from lightning_compress.quantization import find, prepare

SETTINGS = [
    pytest.param({"weight_bits": 8, "activation_bits": 8}, "int-quantized", id="w8a8"),
    pytest.param(
        {"weight_bits": 4, "activation_bits": None, "weight_granularity": "group:4"}, "pack-quantized", id="w4"
    ),
    pytest.param({"weight_bits": 4, "activation_bits": None}, "pack-quantized", id="w4-channel"),
    pytest.param({"weight_bits": 8, "activation_bits": None}, "pack-quantized", id="w8"),
]


def opened(path: Path, model: nn.Module) -> nn.Module:
    """A checkpoint in a plain model, by the compressed-tensors package alone."""
    config = QuantizationConfig.model_validate(
        json.loads(path.with_name("config.json").read_text())["quantization_config"]
    )
    apply_quantization_config(model, config)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    missing, unexpected = model.load_state_dict(load_file(path), strict=False, assign=True)
    assert unexpected == []
    assert all("zero_point" in name or "observer" in name for name in missing), missing
    compressor.decompress_model(model)
    return model.eval()


@pytest.mark.parametrize(("settings", "form"), SETTINGS)
@pytest.mark.parametrize(
    ("network", "x"),
    [
        pytest.param(Mlp, torch.randn(8, 12), id="mlp"),
        pytest.param(Gpt, torch.randint(0, 24, (4, 8)), id="gpt"),
    ],
)
def test_the_package_finds_our_weights_to_the_bit(
    network: type[nn.Module], x: torch.Tensor, settings: dict[str, Any], form: str, tmp_path: Path
) -> None:
    model = prepare(network(), example_inputs=x, **settings).train()
    model(x)
    model.eval()
    file = save_compressed_tensors(model, tmp_path / "model.safetensors")
    theirs, ours = opened(file.path, network()), load_compressed_tensors(file.path, network()).eval()
    config = json.loads(file.config.read_text())["quantization_config"]
    assert config["format"] == form
    for name in file.integer_layers:
        quantizer = find(model).layers.get(f"{name}.weight") or find(model).layers["tokens.weight"]
        expected = quantizer.fake_quantize().detach()
        assert torch.equal(theirs.get_submodule(name).weight, expected), name
        assert torch.equal(ours.get_submodule(name).weight, expected), name
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), ours(x), rtol=1e-4, atol=1e-4)


def test_the_package_quantizes_inputs_on_our_grid(tmp_path: Path) -> None:
    x = torch.randn(256, 12)
    model = prepare(Mlp(), example_inputs=x, weight_bits=8, activation_bits=8).train()
    model(x)
    model.eval()
    file = save_compressed_tensors(model, tmp_path / "model.safetensors")
    with torch.no_grad():
        theirs, ours = opened(file.path, Mlp())(x), model(x)
    assert (theirs - ours).abs().mean() <= 0.01 * ours.abs().mean()
    assert (theirs.argmax(1) == ours.argmax(1)).float().mean() >= 0.99
