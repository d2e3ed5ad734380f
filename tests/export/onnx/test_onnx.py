"""ONNX files, run by ONNX Runtime and by onnx's own reference evaluator."""

from __future__ import annotations

import inspect
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from networks import ConcatNet, EncoderNet, FunctionalResidualNet, Mlp, ResidualNet
from onnx.reference import ReferenceEvaluator
from torch import nn

from lightning_compress import CompressionError
from lightning_compress.export import to_onnx
from lightning_compress.quantization import find, prepare

IMAGE = (8, 3, 8, 8)
NETWORKS = [
    pytest.param(ResidualNet, IMAGE, id="residual"),
    pytest.param(FunctionalResidualNet, IMAGE, id="functional-residual"),
    pytest.param(ConcatNet, IMAGE, id="concat"),
    pytest.param(Mlp, (8, 12), id="mlp"),
    pytest.param(EncoderNet, (8, 7, 6), id="encoder"),
]


def trained(model: nn.Module, shape: tuple[int, ...], **settings: Any) -> nn.Module:
    """A model after a few quantization-aware steps, in eval mode."""
    prepare(model, example_inputs=torch.randn(*shape), **settings)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(*shape)).square().mean().backward()
        optimizer.step()
    return model.eval()


def session(path: Path, optimized: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Without VNNI, products of uint8 and int8 saturate in 16 bits unless this is set.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path: Path, x: torch.Tensor) -> np.ndarray:
    loaded = session(path)
    return loaded.run(None, {loaded.get_inputs()[0].name: x.numpy()})[0]


def operators(path: Path, tmp_path: Path) -> Counter[str]:
    """What ONNX Runtime makes of a file."""
    session(path, tmp_path / "optimized.onnx")
    return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)


class Pixels(nn.Module):
    """Two convolutions read what was an image of bytes, and keep some of it by a mask of booleans."""

    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
            x = x.float()
            return (self.first(x) + self.second(x)) * keep

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = self.Stem(), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.stem(x, x[:, :1, 1:-1, 1:-1] > 100))


@pytest.mark.parametrize("backend", ["onnxruntime", None])
def test_an_image_of_bytes_is_quantized_behind_its_cast(backend: str | None, tmp_path: Path) -> None:
    x = torch.randint(256, (8, 3, 9, 9), dtype=torch.uint8)
    model = prepare(Pixels(), example_inputs=x, backend=backend, first_last_bits=None)
    model.train()(x)
    model.eval()
    quantizers = find(model).activations
    assert all(quantizer.observed for quantizer in quantizers.values())
    name = find(model).layer_input["stem.first.weight"]
    assert find(model).layer_input["stem.second.weight"] == name
    np.testing.assert_array_equal(quantizers[name].range.numpy(), [x.numpy().min(), x.numpy().max()])
    to_onnx(model, x, tmp_path / "model.onnx")
    with torch.no_grad():
        np.testing.assert_allclose(run(tmp_path / "model.onnx", x), model(x).numpy(), rtol=1e-4, atol=1e-3)


class Causal(EncoderNet):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.fc(self.encoder(self.embed(x), mask=mask, is_causal=False))


def test_a_causal_mask_keeps_later_steps_out_of_the_file(tmp_path: Path) -> None:
    model = trained(Causal(), (8, 7, 6), weight_bits=8, activation_bits=8)
    to_onnx(model, torch.randn(8, 7, 6), tmp_path / "model.onnx")
    x = torch.randn(8, 7, 6)
    other = torch.cat([x[:, :4], torch.randn(8, 3, 6)], 1)
    actual = run(tmp_path / "model.onnx", x)
    np.testing.assert_array_equal(actual[:, :4], run(tmp_path / "model.onnx", other)[:, :4])
    with torch.no_grad():
        np.testing.assert_allclose(actual, model(x).numpy(), atol=1e-5)


class Masked(EncoderNet):
    """Keeps its causal mask as a buffer and leaves it to the encoder to find out that it is causal."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.encoder(self.embed(x), mask=self.mask))


def test_a_mask_that_the_encoder_would_look_into_exports_with_a_free_batch(tmp_path: Path) -> None:
    model = trained(Masked(), (8, 7, 6), weight_bits=8, activation_bits=8)
    to_onnx(model, torch.randn(8, 7, 6), tmp_path / "model.onnx")
    x = torch.randn(3, 7, 6)
    with torch.no_grad():
        np.testing.assert_allclose(run(tmp_path / "model.onnx", x), model(x).numpy(), atol=1e-5)


@pytest.mark.parametrize(("network", "shape"), NETWORKS)
@pytest.mark.parametrize("bits", [8, 4])
def test_onnx_runtime_computes_what_the_fake_quantized_model_computes(
    network: type[nn.Module], shape: tuple[int, ...], bits: int, tmp_path: Path
) -> None:
    model = trained(network(), shape, weight_bits=bits, activation_bits=bits)
    to_onnx(model, torch.randn(*shape), tmp_path / "model.onnx")
    x = torch.randn(64, *shape[1:])
    with torch.no_grad():
        expected = model(x).numpy()
    actual = run(tmp_path / "model.onnx", x)
    # Integer kernels round at other places than float ones: single elements may fall on the neighbouring step, which
    # at 4 bits is 17 times as wide.
    step = max(float(q.scale) for q in find(model).activations.values())
    assert np.abs(actual - expected).max() <= 2 * step
    assert np.abs(actual - expected).mean() <= (0.02 if bits == 8 else 0.05) * np.abs(expected).mean()


@pytest.mark.parametrize(("network", "shape"), NETWORKS[:4])
def test_the_file_means_the_same_to_the_reference_evaluator(
    network: type[nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = trained(network(), shape)
    to_onnx(model, torch.randn(*shape), tmp_path / "model.onnx")
    x = torch.randn(4, *shape[1:])
    evaluator = ReferenceEvaluator(str(tmp_path / "model.onnx"))
    with torch.no_grad():
        expected = model(x).numpy()
    actual = evaluator.run(None, {evaluator.input_names[0]: x.numpy()})[0]
    assert np.abs(actual - expected).mean() <= 0.005 * np.abs(expected).mean()


def test_signed_activations_run_behind_pooling_and_flattening(tmp_path: Path) -> None:
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )
    model = trained(net, IMAGE, activation_scheme="symmetric", backend="tensorrt")
    to_onnx(model, torch.randn(*IMAGE), tmp_path / "model.onnx")
    x = torch.randn(64, *IMAGE[1:])
    with torch.no_grad():
        expected = model(x).numpy()
    # Also with the defaults of ONNX Runtime, under which it rewrites int8 to uint8.
    ort.InferenceSession(str(tmp_path / "model.onnx"))
    step = max(float(q.scale) for q in find(model).activations.values())
    assert np.abs(run(tmp_path / "model.onnx", x) - expected).max() <= 2 * step
    evaluator = ReferenceEvaluator(str(tmp_path / "model.onnx"))
    reference = evaluator.run(None, {evaluator.input_names[0]: x.numpy()})[0]
    assert np.abs(reference - expected).max() <= 2 * step


@pytest.mark.parametrize("network", [ResidualNet, FunctionalResidualNet])
def test_convolutions_gemm_and_residual_adds_all_run_in_integers(network: type[nn.Module], tmp_path: Path) -> None:
    model = trained(network(), IMAGE)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    to_onnx(model, torch.randn(*IMAGE), tmp_path / "model.onnx")
    found = operators(tmp_path / "model.onnx", tmp_path)
    assert found["QLinearConv"] == convolutions
    assert found["QLinearAdd"] == (2 if network is ResidualNet else 1)
    assert found["QGemm"] == 1
    assert not {"Conv", "FusedConv", "Gemm", "MatMul", "Add", "DequantizeLinear"} & set(found)


def test_global_pooling_runs_in_integers(tmp_path: Path) -> None:
    to_onnx(trained(ResidualNet(), IMAGE), torch.randn(*IMAGE), tmp_path / "model.onnx")
    assert operators(tmp_path / "model.onnx", tmp_path)["QLinearGlobalAveragePool"] == 1


def test_weights_are_stored_as_integers_with_their_zeros(tmp_path: Path) -> None:
    model = trained(Mlp(), (8, 12))
    with torch.no_grad():
        model[1].weight[:, ::2] = 0
    to_onnx(model, torch.randn(8, 12), tmp_path / "model.onnx")
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(tmp_path / "model.onnx").graph.initializer}
    weight = next(value for name, value in stored.items() if name == "1.weight_integers")
    assert weight.dtype == np.int8
    np.testing.assert_array_equal(weight, find(model).layers["1.weight"].integers().numpy())
    assert (weight[:, ::2] == 0).all()


def test_a_weight_scale_that_is_off_by_one_percent_is_noticed(tmp_path: Path) -> None:
    model = trained(Mlp(), (8, 12))
    to_onnx(model, torch.randn(8, 12), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx")
    for initializer in graph.graph.initializer:
        if initializer.name == "5.weight_scale":
            wrong = onnx.numpy_helper.to_array(initializer) * np.float32(1.01)
            initializer.CopyFrom(onnx.numpy_helper.from_array(wrong, initializer.name))
    onnx.save(graph, tmp_path / "wrong.onnx")
    x = torch.randn(256, 12)
    with torch.no_grad():
        expected = model(x).numpy()

    def error(name: str) -> float:
        return float(np.abs(run(tmp_path / name, x) - expected).mean() / np.abs(expected).mean())

    assert error("model.onnx") < 0.003 < error("wrong.onnx")


def test_a_dimension_that_squeeze_leaves_as_it_is_stays(tmp_path: Path) -> None:
    class Squeezes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x[:, :, None]).squeeze(1).squeeze(2).squeeze(0)

    model = trained(Squeezes(), (3, 7, 5))
    file = to_onnx(model, torch.randn(3, 7, 5), tmp_path / "model.onnx")
    x = torch.randn(6, 7, 5)
    found = ReferenceEvaluator(str(file.path)).run(None, {file.input_names[0]: x.numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(x))


def test_the_model_that_was_exported_is_not_touched(tmp_path: Path) -> None:
    model = trained(ResidualNet(), IMAGE)
    x = torch.randn(*IMAGE)
    before, state = model(x), {k: v.clone() for k, v in model.state_dict().items()}
    to_onnx(model, x, tmp_path / "model.onnx")
    assert torch.equal(model(x), before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_float_model_exports_with_its_batch_norm_folded(tmp_path: Path) -> None:
    model = ResidualNet()
    for _ in range(3):
        model(torch.randn(*IMAGE))
    model.eval()
    to_onnx(model, torch.randn(*IMAGE), tmp_path / "model.onnx")
    x = torch.randn(5, 3, 8, 8)
    np.testing.assert_allclose(run(tmp_path / "model.onnx", x), model(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert "BatchNormalization" not in {n.op_type for n in onnx.load(tmp_path / "model.onnx").graph.node}


def test_the_batch_size_is_free_and_metadata_is_kept(tmp_path: Path) -> None:
    file = to_onnx(trained(Mlp(), (8, 12)), torch.randn(1, 12), tmp_path / "model.onnx", metadata={"classes": "5"})
    for batch in (1, 3, 64):
        assert run(file.path, torch.randn(batch, 12)).shape == (batch, 5)
    loaded = onnx.load(file.path)
    assert {p.key: p.value for p in loaded.metadata_props} == {"classes": "5"}
    assert file.bytes == file.path.stat().st_size


def test_the_file_says_nothing_of_the_machine_that_wrote_it(tmp_path: Path) -> None:
    file = to_onnx(trained(Mlp(), (8, 12)), torch.randn(1, 12), tmp_path / "model.onnx")
    assert str(Path(__file__).parent).encode() not in file.path.read_bytes()
    assert b".py" not in file.path.read_bytes()


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("a.onnx", "b.onnx"):
        torch.manual_seed(3)
        files.append(to_onnx(trained(ResidualNet(), IMAGE), torch.randn(*IMAGE), tmp_path / name).path)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_keyword_arguments_reach_the_graph(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, *, gain: torch.Tensor) -> torch.Tensor:
            return self.fc(x) * gain

    model = trained_keywords(Scaled())
    file = to_onnx(model, {"x": torch.randn(2, 4), "gain": torch.ones(2, 1)}, tmp_path / "model.onnx")
    assert file.input_names == ("x", "gain")
    x, gain = torch.randn(6, 4), torch.randn(6, 1)
    actual = session(file.path).run(None, {"x": x.numpy(), "gain": gain.numpy()})[0]
    np.testing.assert_allclose(actual, model(x=x, gain=gain).detach().numpy(), rtol=1e-3, atol=1e-3)


class Forwarding(nn.Module):
    """Hands keyword arguments on, as wrappers around transformers models do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self._scaled(**inputs)

    def _scaled(self, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return self.fc(x) * gain


@pytest.mark.parametrize("dynamic_batch", [True, False])
def test_keyword_arguments_that_the_forward_does_not_name_reach_the_graph(dynamic_batch: bool, tmp_path: Path) -> None:
    model, axes = trained_keywords(Forwarding()), {"x": {1: "time"}, "gain": {1: "time"}}
    inputs = {"x": torch.randn(2, 5, 4), "gain": torch.ones(2, 5, 1)}
    file = to_onnx(model, inputs, tmp_path / "model.onnx", dynamic_batch=dynamic_batch, dynamic_axes=axes)
    assert file.input_names == ("x", "gain")
    batch = 6 if dynamic_batch else 2
    x, gain = torch.randn(batch, 7, 4), torch.randn(batch, 7, 1)
    actual = session(file.path).run(None, {"x": x.numpy(), "gain": gain.numpy()})[0]
    np.testing.assert_allclose(actual, model(x=x, gain=gain).detach().numpy(), rtol=1e-3, atol=1e-3)
    assert list(inspect.signature(model.forward).parameters) == ["inputs"]


def test_a_size_that_a_forwarding_model_computes_with_is_refused_by_its_argument(tmp_path: Path) -> None:
    class Fixed(Forwarding):
        def _scaled(self, x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
            return super()._scaled(x.reshape(-1, 5, 4), gain)

    inputs = {"x": torch.randn(2, 5, 4), "gain": torch.ones(2, 5, 1)}
    with pytest.raises(CompressionError, match=r"dimension 1 of 'x' is 5 in the exported graph"):
        to_onnx(Fixed(), inputs, tmp_path / "model.onnx", dynamic_axes={"x": {1: "time"}})


def test_inputs_come_in_the_order_of_the_forward_however_the_call_was_written(tmp_path: Path) -> None:
    class Scaled(Forwarding):
        def forward(self, *, x: torch.Tensor, gain: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            return self._scaled(x=x, gain=gain) + shift

    model, size = Scaled().eval(), (2, 1)
    call = {"shift": torch.randn(size), "gain": torch.randn(size), "x": torch.randn(2, 4)}
    names = ["x", "gain", "shift"]
    file = to_onnx(model, call, tmp_path / "model.onnx", input_names=names)
    actual = session(file.path).run(None, {name: value.numpy() for name, value in call.items()})[0]
    np.testing.assert_allclose(actual, model(**call).detach().numpy(), rtol=1e-4, atol=1e-5)


def trained_keywords(model: nn.Module) -> nn.Module:
    inputs = {"x": torch.randn(8, 4), "gain": torch.ones(8, 1)}
    prepare(model, example_inputs=inputs)
    model.train()(**inputs)
    return model.eval()


def test_exporting_before_any_training_batch_is_refused(tmp_path: Path) -> None:
    model = prepare(Mlp(), example_inputs=torch.randn(1, 12))
    with pytest.raises(CompressionError, match="seen no training batch yet"):
        to_onnx(model, torch.randn(1, 12), tmp_path / "model.onnx")


def test_a_model_that_torch_cannot_export_gives_one_paragraph(tmp_path: Path) -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) * float(x.detach().numpy().sum())

    with pytest.raises(CompressionError, match=r"torch\.export cannot trace Opaque"):
        to_onnx(Opaque(), torch.randn(2, 4), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_two_layers_with_equal_weights_load_where_integers_are_rewritten(tmp_path: Path) -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(6, 6)
            self.second = nn.Linear(6, 6)
            self.second.load_state_dict(self.first.state_dict())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(x).unsqueeze(1))).squeeze(1)

    model = Twins()
    prepare(model, example_inputs=torch.randn(2, 6))
    model.train()(torch.randn(32, 6))
    to_onnx(model.eval(), torch.randn(2, 6), tmp_path / "model.onnx")
    x = torch.randn(32, 6)
    np.testing.assert_allclose(run(tmp_path / "model.onnx", x), model(x).detach().numpy(), atol=0.02)


@pytest.mark.parametrize("prepared", ["whole", "part"])
@pytest.mark.parametrize("exported", ["whole", "part"])
def test_a_part_of_what_was_prepared_and_what_holds_it_export_alike(
    prepared: str, exported: str, tmp_path: Path
) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = ResidualNet()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    wrapper = Wrapper()
    prepare(wrapper if prepared == "whole" else wrapper.net, example_inputs=torch.randn(*IMAGE))
    wrapper.train()(torch.randn(*IMAGE))
    wrapper.eval()
    to_onnx(wrapper if exported == "whole" else wrapper.net, torch.randn(*IMAGE), tmp_path / "model.onnx")
    found = operators(tmp_path / "model.onnx", tmp_path)
    assert (found["QLinearConv"], found["QLinearAdd"]) == (6, 2)
    assert find(wrapper) is not None
