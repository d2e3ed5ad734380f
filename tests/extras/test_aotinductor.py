"""AOTInductor packages. Collected by ``make test-extras`` alone: compiling takes a C++ compiler and its time."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from networks import EncoderNet, Mlp, ResidualNet
from torch import nn

from lightning_compress import CompressionError
from lightning_compress.export.pt2.aotinductor import load_aot_inductor, to_aot_inductor
from lightning_compress.foundation.processor import has_vnni
from lightning_compress.quantization import prepare


def trained(model: nn.Module, shape: tuple[int, ...], **settings: object) -> nn.Module:
    """A model whose quantizers have seen a batch, in eval mode."""
    prepare(model, example_inputs=torch.randn(*shape), **settings).train()(torch.randn(*shape))
    return model.eval()


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        pytest.param(ResidualNet, (8, 3, 8, 8), id="residual"),
        pytest.param(EncoderNet, (8, 7, 6), id="encoder"),
    ],
)
def test_a_package_computes_what_the_model_computes_in_another_process(
    network: type[nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = trained(network(), shape)
    file = to_aot_inductor(model, torch.randn(*shape), tmp_path / "model.pt2")
    assert file.integers == (has_vnni() is not False)
    x = torch.randn(512, *shape[1:])
    with torch.no_grad():
        torch.save({"x": x, "y": model(x)}, tmp_path / "io.pt")
    code = (
        "import sys, torch\n"
        "sys.modules['lightning_compress'] = None\n"
        "io = torch.load('io.pt', weights_only=True)\n"
        "model = torch._inductor.aoti_load_package('model.pt2')\n"
        "x = io['x'].clone()\n"
        "y = model(x)\n"
        "assert torch.equal(x, io['x']), 'the input was written over'\n"
        "assert (y - io['y']).abs().mean() <= 0.01 * io['y'].abs().mean()\n"
        "assert (y.argmax(1) == io['y'].argmax(1)).float().mean() >= 0.99\n"
        "assert model(x[:3]).shape[0] == 3\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.parametrize(
    ("network", "shape", "fused"),
    [
        pytest.param(
            ResidualNet,
            (8, 3, 8, 8),
            {"qconv_pointwise_tensor": 4, "qconv2d_pointwise_binary_tensor": 2, "qlinear_pointwise_tensor": 1},
            id="residual",
        ),
        pytest.param(Mlp, (8, 12), {"qlinear_pointwise_tensor": 3}, id="perceptron"),
    ],
)
def test_every_layer_and_residual_sum_runs_in_integers(
    network: type[nn.Module], shape: tuple[int, ...], fused: dict[str, int], tmp_path: Path
) -> None:
    # Seven bits, so that 8-bit kernels do not saturate where there is no VNNI.
    model = trained(network(), shape, backend="inductor", reduce_range=True)
    to_aot_inductor(model, torch.randn(*shape), tmp_path / "model.pt2", integers=True)
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        code = "".join(archive.read(name).decode() for name in archive.namelist() if name.endswith(".cpp"))
    found = Counter(re.findall(r"aoti_torch_cpu_+(\w*(?:conv|linear|addmm|mm_out)\w*)\(", code))
    assert found == fused
    x = torch.randn(512, *shape[1:])
    with torch.no_grad():
        actual, expected = load_aot_inductor(tmp_path / "model.pt2")(x), model(x)
    assert (actual.argmax(1) == expected.argmax(1)).float().mean() >= 0.99


def test_what_is_no_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"nothing of the kind")
    with pytest.raises(CompressionError, match="cannot be loaded as an AOTInductor package"):
        load_aot_inductor(tmp_path / "model.pt2")
    with pytest.raises(CompressionError, match=r"ends in \.pt2"):
        to_aot_inductor(Mlp(), torch.randn(2, 12), tmp_path / "model.so")


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompressionError, match=r"No C\+\+ compiler"):
        to_aot_inductor(Mlp(), torch.randn(2, 12), tmp_path / "model.pt2")
