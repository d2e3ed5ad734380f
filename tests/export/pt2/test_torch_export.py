"""``.pt2`` files, loaded by PyTorch alone."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import EncoderNet, Mlp, ResidualNet
from torch import nn

from lightning_compress import CompressionError
from lightning_compress.export.pt2.write import load_torch_export, to_torch_export
from lightning_compress.export.pt2e import to_pt2e
from lightning_compress.export.trace import trace
from lightning_compress.quantization import find, prepare


def trained(model: nn.Module, shape: tuple[int, ...], **settings: Any) -> nn.Module:
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
def test_the_file_computes_what_the_fake_quantized_model_computes(
    network: type[nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = trained(network(), shape)
    to_torch_export(model, torch.randn(*shape), tmp_path / "model.pt2")
    x = torch.randn(512, *shape[1:])
    with torch.no_grad():
        expected, actual = model(x), load_torch_export(tmp_path / "model.pt2")(x)
    assert (actual - expected).abs().mean() <= 0.005 * expected.abs().mean()
    assert (actual.argmax(1) == expected.argmax(1)).float().mean() >= 0.995


def test_a_layer_behind_a_view_reads_dequantized_integers(tmp_path: Path) -> None:
    model = trained(ResidualNet(), (8, 3, 8, 8), backend="inductor")
    to_torch_export(model, torch.randn(8, 3, 8, 8), tmp_path / "model.pt2")
    nodes = list(load_torch_export(tmp_path / "model.pt2").graph.nodes)
    layers = [node for node in nodes if node.target in (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default)]
    dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    assert len(layers) == sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
    assert [node.args[0].target for node in layers] == [dequantize] * len(layers)


@pytest.mark.parametrize("granularity", ["tensor", "group:5", "channel"])
def test_every_granularity_of_weights_keeps_its_integers(granularity: str, tmp_path: Path) -> None:
    model = trained(Mlp(), (8, 12), weight_granularity=granularity)
    to_torch_export(model, torch.randn(8, 12), tmp_path / "model.pt2")
    loaded = load_torch_export(tmp_path / "model.pt2")
    stored = dict(loaded.named_buffers())
    integers = next(value for name, value in stored.items() if name.endswith("1.weight_integers"))
    assert torch.equal(integers, find(model).layers["1.weight"].integers())
    x = torch.randn(64, 12)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=0.02, atol=0.02)


def test_a_process_without_this_package_loads_and_runs_it(tmp_path: Path) -> None:
    model = trained(ResidualNet(), (8, 3, 8, 8))
    x = torch.randn(4, 3, 8, 8)
    to_torch_export(model, x, tmp_path / "model.pt2")
    torch.save({"x": x, "y": load_torch_export(tmp_path / "model.pt2")(x)}, tmp_path / "io.pt")
    code = (
        "import sys, torch, torch.ao.quantization.fx._decomposed\n"
        "sys.modules['lightning_compress'] = None\n"
        "io = torch.load('io.pt', weights_only=True)\n"
        "y = torch.export.load('model.pt2').module()(io['x'])\n"
        "assert torch.equal(y, io['y'])\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_the_file_holds_neither_the_example_inputs_nor_names_of_files(tmp_path: Path) -> None:
    example = torch.full((8, 12), 1234.5)
    to_torch_export(trained(Mlp(), (8, 12)), example, tmp_path / "model.pt2")
    data = (tmp_path / "model.pt2").read_bytes()
    assert example[0].numpy().tobytes() not in data
    assert str(Path(__file__).parent).encode() not in data
    assert b"networks.py" not in data


def test_the_model_is_not_touched_and_the_batch_size_is_free(tmp_path: Path) -> None:
    model = trained(Mlp(), (8, 12))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    file = to_torch_export(model, torch.randn(1, 12), tmp_path / "model.pt2")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert file.bytes == file.path.stat().st_size
    assert [load_torch_export(file.path)(torch.randn(n, 12)).shape[0] for n in (1, 3)] == [1, 3]


def test_a_float_model_is_written_with_its_batch_norms_folded(tmp_path: Path) -> None:
    model = ResidualNet()
    model(torch.randn(8, 3, 8, 8))
    model.eval()
    to_torch_export(model, torch.randn(2, 3, 8, 8), tmp_path / "model.pt2")
    loaded = load_torch_export(tmp_path / "model.pt2")
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    assert not any("running_mean" in name for name, _ in loaded.named_buffers())


def test_outputs_may_be_infinite(tmp_path: Path) -> None:
    class Masked(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).masked_fill(torch.arange(4) == 2, -torch.inf)

    model, x = Masked(6, 4), torch.randn(8, 6)
    to_torch_export(model, x, tmp_path / "model.pt2")
    torch.testing.assert_close(load_torch_export(tmp_path / "model.pt2")(x), model(x))


def test_a_file_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"nothing of the kind")
    with pytest.raises(CompressionError, match="cannot be loaded as a torch"):
        load_torch_export(tmp_path / "model.pt2")


@pytest.mark.parametrize(
    ("harm", "part", "pattern", "replacement", "said"),
    [
        ("pickled inputs", "sample_inputs", rb"(?s).*", b"cos\nsystem\n(S'touch gone'\ntR.", "may be code"),
        ("pickled weights", ".json", rb'"use_pickle": false', b'"use_pickle": true', "in pickles"),
        ("expression", "model.json", rb'"expr_str": "[^"]+"', b'"expr_str": "eval(chr(49))"', "no arithmetic"),
        (
            "function",
            "model.json",
            rb"torch.ops.aten.linear.default",
            b"torch.hub.os.system",
            "not among the operators",
        ),
        ("reads a file", "model.json", rb"torch.ops.aten.linear.default", b"torch.ops.aten.from_file.default", "calls"),
        ("guards", "model.json", rb'"guards_code": \[\]', b'"guards_code": ["exit()"]', "are code"),
        ("import", "model.json", rb'("in_spec": "\[1, )', rb'\1{\\"__enum__\\": 1}, ', "imports a module"),
    ],
)
def test_a_file_that_could_run_code_is_refused_before_pytorch_reads_it(
    harm: str, part: str, pattern: bytes, replacement: bytes, said: str, tmp_path: Path
) -> None:
    to_torch_export(trained(Mlp(), (8, 12)), torch.randn(8, 12), tmp_path / "model.pt2")
    load_torch_export(tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        parts = {item.filename: archive.read(item) for item in archive.infolist()}
    changed = {k: re.sub(pattern, replacement, v, count=0 if v else 1) if part in k else v for k, v in parts.items()}
    assert changed != parts, harm
    with zipfile.ZipFile(tmp_path / "model.pt2", "w") as archive:
        for name, content in changed.items():
            archive.writestr(name, content)
    with pytest.raises(CompressionError, match=said):
        load_torch_export(tmp_path / "model.pt2")


def test_a_file_with_two_parts_of_one_name_is_refused(tmp_path: Path) -> None:
    to_torch_export(trained(Mlp(), (8, 12)), torch.randn(8, 12), tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2", "a") as archive:
        name = next(n for n in archive.namelist() if n.endswith("model.json"))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(name, b"{}")
    with pytest.raises(CompressionError, match="may be code"):
        load_torch_export(tmp_path / "model.pt2")


def test_a_layer_that_runs_twice_has_a_dequantization_for_each_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.relu(self.layer(x)))

    model, x = Twice(), torch.randn(8, 4)
    prepare(model, example_inputs=x)
    model.train()(x)
    program = trace(model.eval(), x).program
    to_pt2e(program)
    readers = [
        len(node.users)
        for node in program.graph.nodes
        if node.target is torch.ops.quantized_decomposed.dequantize_per_channel.default
    ]
    assert readers == [1, 1]
