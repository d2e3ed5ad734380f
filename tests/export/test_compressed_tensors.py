"""The compressed-tensors format, written and read without that package; ``tests/extras`` reads it with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_modules import PlainModule, loader, quiet_trainer
from networks import EncoderNet, Gpt, Mlp, ResidualNet
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_compress import CompressedExport, CompressionError, QuantizationAwareTraining
from lightning_compress.export.compressed_tensors import load_compressed_tensors, save_compressed_tensors
from lightning_compress.export.compressed_tensors.int32_words import pack, unpack
from lightning_compress.models import TransformerEncoder
from lightning_compress.quantization import find, prepare

W4A16 = {"weight_bits": 4, "activation_bits": None, "weight_granularity": "group:4"}
W8A8 = {"weight_bits": 8, "activation_bits": 8}


def trained(model: nn.Module, x: torch.Tensor, **settings: Any) -> nn.Module:
    prepare(model, example_inputs=x, **settings).train()(x)
    return model.eval()


@pytest.mark.parametrize(
    "settings", [W8A8, W4A16, {**W4A16, "weight_bits": 3}, {**W8A8, "weight_granularity": "tensor"}]
)
def test_a_loaded_model_computes_what_the_fake_quantized_one_computes(settings: dict[str, Any], tmp_path: Path) -> None:
    model = trained(Mlp(), torch.randn(8, 12), **settings)
    save_compressed_tensors(model, tmp_path / "model.safetensors")
    loaded = load_compressed_tensors(tmp_path / "model.safetensors", Mlp()).eval()
    x = torch.randn(64, 12)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-5)


def test_integers_and_scales_lie_where_the_format_has_them(tmp_path: Path) -> None:
    model = trained(Mlp(), torch.randn(8, 12), **W8A8)
    save_compressed_tensors(model, tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    quantizer = find(model).layers["1.weight"]
    assert torch.equal(stored["1.weight"], quantizer.integers())
    assert torch.equal(stored["1.weight_scale"], quantizer.scale()[:, None])
    assert stored["1.input_scale"].shape == stored["1.input_zero_point"].shape == (1,)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["format"]) == ("compressed-tensors", "int-quantized")
    assert config["config_groups"]["group_0"]["targets"] == ["1", "3", "5"]


def test_layers_that_share_an_input_each_store_its_scale(tmp_path: Path) -> None:
    model = trained(TransformerEncoder(1, 8, 10, patch=2, dim=16), torch.randn(8, 1, 8, 8), **W8A8)
    save_compressed_tensors(model, tmp_path / "model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    scales = [stored[f"blocks.0.attention.{name}.input_scale"] for name in ("query", "key", "value")]
    site = find(model).layer_input["blocks.0.attention.query.weight"]
    assert all(torch.equal(scale, find(model).activations[site].scale.reshape(1)) for scale in scales)


def test_four_bits_take_half_a_byte(tmp_path: Path) -> None:
    model = trained(Mlp(64, 256), torch.randn(8, 64), **{**W4A16, "weight_granularity": "group:64"})
    file = save_compressed_tensors(model, tmp_path / "model.safetensors")
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert weights / 2 < file.path.stat().st_size < 0.75 * weights
    assert file.bytes == file.path.stat().st_size + file.config.stat().st_size


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_is_undone_for_any_width(bits: int) -> None:
    values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, 13)).to(torch.int8)
    assert torch.equal(unpack(pack(values, bits), bits, 13), values)


def test_attention_keeps_its_input_projection_in_float_and_says_so(tmp_path: Path) -> None:
    model = trained(EncoderNet(), torch.randn(8, 7, 6), **W8A8)
    file = save_compressed_tensors(model, tmp_path / "model.safetensors")
    assert "encoder.layers.0.self_attn.in_proj_weight" in file.float_weights
    assert "encoder.layers.0.linear1" in file.integer_layers
    name = "encoder.layers.0.self_attn.in_proj_weight"
    assert torch.equal(load_file(file.path)[name], find(model).layers[name].fake_quantize())


def test_tied_embeddings_stay_float_where_they_are_looked_up(tmp_path: Path) -> None:
    tokens = torch.randint(0, 24, (4, 8))
    model = trained(Gpt(), tokens, **W4A16)
    save_compressed_tensors(model, tmp_path / "model.safetensors")
    loaded = load_compressed_tensors(tmp_path / "model.safetensors", Gpt()).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens), model(tokens), rtol=1e-5, atol=1e-5)


class Shared(nn.Module):
    """A layer with two names, and a weight with a third one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.again, self.names = self.first, nn.ParameterList([self.first.weight])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.again(self.first(x).relu()))


@pytest.mark.parametrize("settings", [W4A16, {**W8A8, "weight_bits": 2, "range": "learned"}])
def test_a_layer_is_stored_quantized_under_each_of_its_names(settings: dict[str, Any], tmp_path: Path) -> None:
    model = trained(Shared(), torch.randn(8, 8), first_last_bits=None, **settings)
    file = save_compressed_tensors(model, tmp_path / "model.safetensors")
    assert file.integer_layers == ("again", "first", "last")
    loaded, x = load_compressed_tensors(file.path, Shared()).eval(), torch.randn(64, 8)
    assert torch.equal(loaded.first.weight, find(model).layers["first.weight"].fake_quantize())
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-5, atol=1e-5)


def test_models_without_linear_layers_under_quantization_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match="no Linear layer under quantization"):
        save_compressed_tensors(Mlp(), tmp_path / "model.safetensors")
    with pytest.raises(CompressionError, match=r"groups of 5 do not divide its 12 inputs"):
        save_compressed_tensors(
            trained(Mlp(), torch.randn(8, 12), **{**W4A16, "weight_granularity": "group:5"}),
            tmp_path / "model.safetensors",
        )
    with pytest.raises(CompressionError, match="input has 4 bits"):
        save_compressed_tensors(
            trained(Mlp(), torch.randn(8, 12), weight_bits=4, activation_bits=4), tmp_path / "model.safetensors"
        )
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_compressed_tensors(trained(Mlp(), torch.randn(8, 12), **W8A8), path)
    with pytest.raises(CompressionError, match="does not fit ResidualNet"):
        load_compressed_tensors(path, ResidualNet())
    tensors = load_file(path)
    save_file({name: value for name, value in tensors.items() if name != "1.weight_scale"}, path)
    with pytest.raises(CompressionError, match="tensors of '1' are missing"):
        load_compressed_tensors(path, Mlp())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CompressionError, match="cannot be read as a compressed-tensors checkpoint"):
        load_compressed_tensors(path, Mlp())
    (tmp_path / "config.json").unlink()
    with pytest.raises(CompressionError, match=r"config\.json must lie beside it"):
        load_compressed_tensors(path, Mlp())


class PlainMlp(PlainModule):
    def _build(self) -> None:
        self.net = Mlp(3 * 8 * 8)


def test_an_export_writes_verifies_and_reports_both_files(tmp_path: Path) -> None:
    quiet_trainer(
        callbacks=[CompressedExport(tmp_path, formats=["compressed_tensors"]), QuantizationAwareTraining()]
    ).fit(PlainMlp(), loader(), loader(seed=1))
    report = json.loads((tmp_path / "report.json").read_text())
    deployed = report["results"]["deployed"]
    assert deployed["source"] == "model.safetensors"
    assert deployed["bytes"] == sum((tmp_path / name).stat().st_size for name in ("model.safetensors", "config.json"))
    assert report["agreement"] >= 0.98
