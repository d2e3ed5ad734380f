"""INT4 weights in ONNX files, and free dimensions, run by ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import EncoderNet, Gpt, ResidualNet, Tagger
from onnx import TensorProto, numpy_helper
from torch import nn

from lightning_compress import CompressionError
from lightning_compress.export import to_onnx
from lightning_compress.export.onnx.session import open_session
from lightning_compress.quantization import prepare


class Head(nn.Module):
    """Linear layers on vectors (a Gemm) and on sequences (a MatMul)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.nn.functional.gelu(self.first(x)))


def run(path: Path, *inputs: torch.Tensor, exact: bool = False) -> np.ndarray:
    session = open_session(path)
    if exact:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)})[0]


def kernels(path: Path, folder: Path) -> Counter[str]:
    open_session(path, optimized_path=str(folder / "optimized.onnx"))
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def named(path: Path) -> list[tuple[str, int]]:
    return [(item.name, item.data_type) for item in onnx.load(path).graph.initializer]


def types(path: Path) -> Counter[int]:
    """How many matrices and kernels a file stores in each type."""
    return Counter(item.data_type for item in onnx.load(path).graph.initializer if len(item.dims) > 1)


def weight_only(model: nn.Module, x: torch.Tensor, **settings: object) -> nn.Module:
    prepare(model, **{"weight_bits": 4, "activation_bits": None, **settings})
    model.train()(x)
    return model.eval()


@pytest.mark.parametrize("granularity", ["channel", "group:16"])
@pytest.mark.parametrize("shape", [(8, 32), (8, 5, 32)], ids=["vectors", "sequences"])
def test_products_of_float_activations_by_4_bit_weights_are_one_kernel(
    shape: tuple[int, ...], granularity: str, tmp_path: Path
) -> None:
    x = torch.randn(*shape)
    model = weight_only(Head(), x, weight_granularity=granularity)
    path = to_onnx(model, x, tmp_path / "model.onnx").path
    expected = model(x).detach().numpy()
    # By default ONNX Runtime rounds the activations of this kernel to 8 bits.
    np.testing.assert_allclose(run(path, x), expected, atol=0.03)
    np.testing.assert_allclose(run(path, x, exact=True), expected, rtol=1e-4, atol=1e-5)
    assert sum("weight" in name for name, kind in named(path) if kind == TensorProto.INT4) >= 2
    assert kernels(path, tmp_path)["MatMulNBits"] == 2


def test_before_an_activation_that_fuses_into_a_float_gemm_weights_stay_int8(tmp_path: Path) -> None:
    x = torch.randn(8, 32)
    model = weight_only(nn.Sequential(nn.Linear(32, 16), nn.ReLU()), x)
    path = to_onnx(model, x, tmp_path / "model.onnx").path
    assert kernels(path, tmp_path)["FusedGemm"] == 1
    assert types(path) == {TensorProto.INT8: 1}


def test_weights_of_8_bits_stay_int8(tmp_path: Path) -> None:
    x = torch.randn(8, 32)
    path = to_onnx(weight_only(Head(), x, weight_bits=8), x, tmp_path / "model.onnx").path
    assert types(path) == {TensorProto.INT8: 2}


def trained(model: nn.Module, x: torch.Tensor, bits: int) -> nn.Module:
    prepare(model, weight_bits=bits, activation_bits=8, example_inputs=x)
    model.train()(x)
    return model.eval()


def test_where_activations_are_integers_4_bit_weights_keep_the_integer_kernels(tmp_path: Path) -> None:
    x = torch.randn(8, 3, 8, 8)
    model = trained(ResidualNet(), x, 4)
    path = to_onnx(model, x, tmp_path / "model.onnx").path
    assert types(path)[TensorProto.INT4] == 0
    assert kernels(path, tmp_path)["QLinearConv"] == 6


def test_int4_everywhere_halves_the_weights_gives_the_same_numbers_and_runs_in_float(tmp_path: Path) -> None:
    x = torch.randn(8, 3, 8, 8)
    model = trained(ResidualNet(), x, 4)
    plain = to_onnx(model, x, tmp_path / "plain.onnx")
    small = to_onnx(model, x, tmp_path / "small.onnx", int4=True)
    # The first and the last layer have 8 bits.
    assert types(small.path) == {TensorProto.INT4: 5, TensorProto.INT8: 2}
    stored = sum(numpy_helper.to_array(i).nbytes for i in onnx.load(plain.path).graph.initializer if len(i.dims) > 1)
    assert plain.bytes - small.bytes > 0.35 * stored
    np.testing.assert_allclose(run(small.path, x), run(plain.path, x), atol=0.05)
    assert kernels(small.path, tmp_path)["QLinearConv"] == 1


@pytest.mark.parametrize("free", [False, True], ids=["fixed", "free"])
@pytest.mark.parametrize(
    ("network", "argument", "length"), [(EncoderNet, "x", 7), (Gpt, "tokens", 8), (Tagger, "tokens", 9)]
)
def test_sequences_of_other_lengths_run_where_their_axis_is_free(
    network: type[nn.Module], argument: str, length: int, free: bool, tmp_path: Path
) -> None:
    def example(batch: int, time: int) -> torch.Tensor:
        floats = network is EncoderNet
        return torch.randn(batch, time, 6) if floats else torch.randint(0, 20, (batch, time))

    model = trained(network(), example(8, length), 8)
    axes = {argument: {1: "time"}} if free else {}
    path = to_onnx(model, example(2, length), tmp_path / "model.onnx", dynamic_axes=axes).path
    sizes = [dim.dim_param or dim.dim_value for dim in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
    assert sizes[:2] == ["batch", "time" if free else length]
    other = example(5, length - 3)
    if free:
        np.testing.assert_allclose(run(path, other), model(other).detach().numpy(), atol=0.1)
    else:
        with pytest.raises(Exception, match="invalid dimensions"):
            run(path, other)


@pytest.mark.parametrize(
    ("axes", "message"),
    [({"y": {1: "time"}}, r"names of tensors in the call, got 'y'.*Closest: x"), ({"x": {3: "time"}}, r"from 0 to 2")],
)
def test_free_axes_that_are_not_there_are_refused(
    axes: dict[str, dict[int, str]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CompressionError, match=message):
        to_onnx(EncoderNet(), torch.randn(2, 7, 6), tmp_path / "model.onnx", dynamic_axes=axes)


def test_an_axis_that_the_model_fixes_is_refused_by_name(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(42, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.flatten(1))

    with pytest.raises(CompressionError, match=r"dimension 1 of 'x' is 7.*Fixed"):
        to_onnx(Fixed(), torch.randn(2, 7, 6), tmp_path / "model.onnx", dynamic_axes={"x": {1: "time"}})


def test_pruned_weights_are_zeros_of_the_file(tmp_path: Path) -> None:
    model = ResidualNet()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter[torch.rand_like(parameter) < 0.7] = 0.0
    expected = {n: int((p == 0).sum()) for n, p in model.named_parameters() if p.ndim > 1}
    model = trained(model, torch.randn(8, 3, 8, 8), 8)
    graph = onnx.load(to_onnx(model, torch.randn(2, 3, 8, 8), tmp_path / "model.onnx").path).graph
    stored = {i.name.removesuffix("_integers"): numpy_helper.to_array(i) for i in graph.initializer if len(i.dims) > 1}
    for name, zeros in expected.items():
        key = next(key for key in stored if key.startswith(name))
        assert int((stored[key] == 0).sum()) >= zeros > 0
