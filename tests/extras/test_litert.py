"""``.tflite`` files, run by LiteRT's interpreter. Collected by ``make test-extras``: needs the extra ``litert``."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from lightning_modules import PlainModule, loader, quiet_trainer
from networks import ConcatNet, EncoderNet, KeywordSpotter, Mlp, MobileNet
from torch import nn
from torch.nn import functional as F

from lightning_compress import CompressedExport, CompressionError, QuantizationAwareTraining
from lightning_compress.export.divergence import first_divergence, site_errors
from lightning_compress.export.litert.integer_operators import litert_integer_share
from lightning_compress.export.litert.run import LiteRTModel
from lightning_compress.export.litert.write import to_litert
from lightning_compress.models import SmallCNN
from lightning_compress.models.resnet import ResNet
from lightning_compress.quantization import find, prepare

NETWORKS = {
    "mlp": (Mlp, (12,)),
    "cnn": (lambda: SmallCNN(1, 5, width=8), (1, 8, 8)),
    "mobile": (MobileNet, (3, 16, 16)),
    "resnet20": (lambda: ResNet(3, 5, depth=20), (3, 16, 16)),
    "unet": (ConcatNet, (3, 8, 8)),
    "conv1d": (KeywordSpotter, (1, 256)),
    "encoder": (lambda: EncoderNet(width=32), (7, 6)),
}
# A transformer's layer norms, softmax and the products inside of attention have no trained integers, and the converter
# leaves transposed convolutions in float.
IN_FLOAT = {"encoder", "unet"}


def samples(shape: tuple[int, ...], count: int, *, dense: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise around one of a few directions, and which; for dense predictions one direction of the channels a pixel."""
    generator = torch.Generator().manual_seed(7)
    if dense:
        directions = 2 * torch.randn(4, shape[0], generator=generator)
        y = F.interpolate(torch.rand(count, 4, 2, 2), shape[1:]).argmax(1)
        return torch.randn(count, *shape) / 2 + directions[y].permute(0, 3, 1, 2), y
    directions = 2 * torch.randn(5, *shape, generator=generator)
    y = torch.randint(0, 5, (count,))
    return torch.randn(count, *shape) + directions[y], y


def trained(name: str, steps: int = 80, **settings: object) -> nn.Module:
    """A network that has learned to tell the directions apart under quantization, in eval mode."""
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    model = build()
    batch = lambda count: samples(shape, count, dense=name == "unet")  # noqa: E731
    prepare(model, example_inputs=batch(8)[0], **{"backend": "litert", **settings}).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        x, y = batch(64)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def networks() -> Callable[[str], nn.Module]:
    known: dict[str, nn.Module] = {}

    def get(name: str) -> nn.Module:
        if name not in known:
            known[name] = trained(name)
        return known[name]

    return get


def held_out(name: str, count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return samples(NETWORKS[name][1], count, dense=name == "unet")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_says_what_the_fake_quantized_model_says(
    name: str, networks: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    model = networks(name)
    x, y = held_out(name)
    to_litert(model, x[:1], tmp_path / "model.tflite")
    with torch.no_grad():
        expected = model(x)
    assert (expected.argmax(1) == y).float().mean() > 0.9, "the network has learned something that could be lost"
    for kernels in ("xnnpack", "reference"):
        (actual,) = LiteRTModel(tmp_path / "model.tflite", model.forward, kernels=kernels)(x)
        assert (actual.argmax(1) == expected.argmax(1)).float().mean() >= 0.995, kernels
        assert (actual - expected).abs().mean() <= 0.01 * expected.abs().mean(), kernels


@pytest.mark.parametrize("name", NETWORKS)
def test_every_operator_computes_in_integers_but_those_that_are_named(
    name: str, networks: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    model = networks(name)
    to_litert(model, held_out(name)[0][:1], tmp_path / "model.tflite", values="int8")
    file = Interpreter(str(tmp_path / "model.tflite"))
    floating = [detail["name"] for detail in file.get_tensor_details() if detail["dtype"] == np.float32]
    share = litert_integer_share(tmp_path / "model.tflite")
    if name in IN_FLOAT:
        assert 0.5 < share.share < 1
        assert any("TRANSPOSE_CONV" in line or "BATCH_MATMUL" in line for line in share.lines())
    else:
        assert floating == [], "an integer file has no float tensor at all"
        assert (share.share, share.lines()) == (1.0, [])


def test_the_trained_integers_and_scales_are_in_the_file(networks: Callable[[str], nn.Module], tmp_path: Path) -> None:
    model = networks("cnn")
    to_litert(model, held_out("cnn")[0][:1], tmp_path / "model.tflite")
    file = Interpreter(str(tmp_path / "model.tflite"))
    stored = [
        (np.asarray(file.get_tensor(detail["index"])), detail["quantization_parameters"]["scales"])
        for detail in file.get_tensor_details()
        if detail["dtype"] == np.int8 and len(detail["quantization_parameters"]["scales"]) > 1
    ]
    quantization = find(model)
    assert quantization is not None
    last = [quantizer for name, quantizer in quantization.layers.items() if name.endswith("fc.weight")]
    for quantizer in last:
        assert any(
            np.array_equal(values, quantizer.integers().numpy())
            and np.array_equal(scales, quantizer.scale().detach().numpy())
            for values, scales in stored
        ), quantizer.name
    grids = {
        (np.float32(detail["quantization"][0]), detail["quantization"][1] + 128)
        for detail in file.get_tensor_details()
        if detail["quantization"][0]
    }
    for quantizer in quantization.activations.values():
        assert (np.float32(quantizer.scale), int(quantizer.zero_point)) in grids, quantizer.name


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("values", ["float32", "int8"])
def test_layout_and_values_of_the_outside_are_settings(
    layout: str, values: str, networks: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    model = networks("cnn")
    x, _ = held_out("cnn", 32)
    to_litert(model, x[:1], tmp_path / "model.tflite", layout=layout, values=values)
    file = Interpreter(str(tmp_path / "model.tflite"))
    file.allocate_tensors()
    (entry,), (end,) = file.get_input_details(), file.get_output_details()
    assert list(entry["shape"]) == ([1, 8, 8, 1] if layout == "channels_last" else [1, 1, 8, 8])
    assert entry["dtype"] is end["dtype"] is {"float32": np.float32, "int8": np.int8}[values]
    images = x.permute(0, 2, 3, 1).numpy() if layout == "channels_last" else x.numpy()
    answers = []
    for image in images:
        if values == "int8":
            scale, zero_point = entry["quantization"]
            image = np.clip(np.rint(image / scale) + zero_point, -128, 127).astype(np.int8)
        file.set_tensor(entry["index"], np.ascontiguousarray(image[None]))
        file.invoke()
        answers.append(file.get_tensor(end["index"])[0].argmax())
    with torch.no_grad():
        expected = model(x)
    assert (np.array(answers) == expected.argmax(1).numpy()).all()
    (ours,) = LiteRTModel(tmp_path / "model.tflite", model.forward)(x)
    assert (ours.argmax(1) == expected.argmax(1)).all()


def test_several_samples_a_call_and_inputs_that_do_not_fit(
    networks: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    model = networks("mlp")
    x, _ = held_out("mlp", 5)
    to_litert(model, x, tmp_path / "two.tflite", batch_size=2)
    two = LiteRTModel(tmp_path / "two.tflite", model.forward)
    with torch.no_grad():
        assert (two(x)[0].argmax(1) == model(x).argmax(1)).all()
    with pytest.raises(CompressionError, match=r"takes inputs of \[2, 12\], and \[2, 13\] came"):
        two(torch.randn(2, 13))


def test_narrow_activations_and_foreign_files_are_refused(tmp_path: Path) -> None:
    narrow = trained("mlp", steps=1, activation_bits=4, first_last_bits=None)
    with pytest.raises(CompressionError, match="activations of 8 bits"):
        to_litert(narrow, held_out("mlp", 1)[0], tmp_path / "model.tflite")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "none.tflite").write_bytes(b"nothing of the kind")
    with pytest.raises(CompressionError, match="LiteRT cannot load this file"):
        LiteRTModel(tmp_path / "none.tflite", nn.Linear(2, 2).forward)


def test_the_first_diverging_layer_of_a_damaged_file_is_named(
    networks: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    model = networks("cnn")
    x, _ = held_out("cnn", 16)
    to_litert(model, x[:1], tmp_path / "model.tflite")
    assert first_divergence(site_errors(tmp_path / "model.tflite", model, (x,))) is None
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.block2.conv1.weight.mul_(-1)
    found = first_divergence(site_errors(tmp_path / "model.tflite", broken, (x,)))
    assert found is not None
    assert found.layers[0].startswith("block2")


def test_an_export_writes_runs_measures_and_reports_litert(tmp_path: Path) -> None:
    callback = CompressedExport(tmp_path, formats=["litert"], litert={"values": "int8"})
    quiet_trainer(callbacks=[callback, QuantizationAwareTraining(backend="litert")]).fit(
        PlainModule(), loader(), loader(seed=1)
    )
    report = json.loads((tmp_path / "report.json").read_text())
    deployed = report["results"]["deployed"]
    assert (deployed["source"], deployed["bytes"]) == ("model.tflite", (tmp_path / "model.tflite").stat().st_size)
    assert deployed["runtime"].startswith("LiteRT ")
    assert report["agreement"] >= 0.95
    assert report["integer_share"] == 1.0
    assert report["latency"]["ratio"]["median"] > 0
    micro = report["microcontroller"]
    assert micro["flash_bytes"] == deployed["bytes"]
    assert 0 < micro["arena_bytes"] < 100_000
    assert micro["agreement"] >= 0.95
    assert "of RAM" in " ".join(report["notes"])
