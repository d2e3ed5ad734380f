"""Weights that a module's forward hands to functions itself."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import lightning as L
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import QuantizationAwareTraining
from lightning_compress.errors import CompressionError
from lightning_compress.export import load_packed, save_packed, to_onnx
from lightning_compress.quantization import find, prepare


class Perceptron(L.LightningModule):
    """No layer at all: a convolution and a linear map by functions."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3) / 5)
        self.kernel_bias = nn.Parameter(torch.randn(8))
        self.relu = nn.ReLU()
        self.matrix = nn.Parameter(torch.randn(5, 8) / 3)
        self.table = nn.Parameter(torch.randn(2, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(F.conv2d(x, self.kernel, self.kernel_bias, padding=1)).mean((2, 3))
        return F.linear(x, self.matrix) + self.table.sum(0)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Words(nn.Module):
    """Output words by the embeddings of the input words, read by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.body = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self.norm(self.body(self.embedding(x)).relu()), self.embedding.weight)


def images(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6)


def prepared(**settings: object) -> Perceptron:
    torch.manual_seed(0)
    model = prepare(Perceptron(), example_inputs=images(), reduce_range=True, **settings)
    model.train()(images())
    return model.eval()


def on_grid(weight: torch.Tensor, dims: tuple[int, ...], qmax: int) -> torch.Tensor:
    scale = weight.detach().abs().amax(dims, keepdim=True) / qmax
    return torch.round(weight.detach() / scale) * scale


def test_weights_are_found_and_nothing_else_is_taken_for_one() -> None:
    model = prepared()
    assert list(find(model).layers) == ["kernel", "matrix"]
    assert find(model).layer_input["kernel"] == "model:input[0]"


def test_it_computes_with_weights_on_their_grid() -> None:
    model = prepared(activation_bits=None, weight_bits=4, first_last_bits=None)
    x = images()
    plain = copy.deepcopy(find(model).root)
    for parameter, dims in ((plain.kernel, (1, 2, 3)), (plain.matrix, (1,))):
        parameter.data = on_grid(parameter, dims, 7)
    features = F.conv2d(x, plain.kernel, plain.kernel_bias, padding=1).relu().mean((2, 3))
    torch.testing.assert_close(model(x), F.linear(features, plain.matrix) + plain.table.sum(0))


def test_tied_embeddings_are_on_their_grid_in_both_reads() -> None:
    torch.manual_seed(0)
    model = prepare(Words(), example_inputs=torch.randint(30, (2, 4)), activation_bits=None)
    tokens = torch.randint(30, (3, 5))
    weight, body = on_grid(model.embedding.weight, (1,), 127), on_grid(model.body.weight, (1,), 127)
    hidden = F.linear(F.embedding(tokens, weight), body, model.body.bias).relu()
    torch.testing.assert_close(model(tokens), F.linear(F.layer_norm(hidden, (16,)), weight))
    # One fake quantization for both reads, and gradients of both.
    model.train()(tokens).sum().backward()
    assert model.embedding.weight.grad is not None
    assert "weight" not in model.embedding.__dict__


@pytest.mark.parametrize(("network", "inputs"), [(Perceptron, images), (Words, lambda: torch.randint(30, (4, 6)))])
def test_onnx_runtime_gives_the_same_answers(network: type[nn.Module], inputs: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = prepare(network(), example_inputs=inputs(), reduce_range=True)
    for _ in range(3):
        model.train()(inputs())
    x = inputs()
    to_onnx(model.eval(), x, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = model(x).detach().numpy()
    assert np.abs(found - expected).mean() < 0.01 * np.abs(expected).mean()
    graph = onnx.load(tmp_path / "model.onnx").graph
    stored = {tuple(tensor.dims): tensor.data_type for tensor in graph.initializer}
    read = [use.owner._parameters[use.attribute] for layer in find(model).layers.values() for use in layer.uses]
    assert read
    for weight in read:
        assert stored.get(tuple(weight.shape), stored.get(tuple(weight.shape[::-1]))) == onnx.TensorProto.INT8


def test_a_packed_file_and_a_state_bring_the_quantizers_back(tmp_path: Path) -> None:
    model, x = prepared(), images()
    save_packed(model, tmp_path / "model.packed")
    loaded = load_packed(tmp_path / "model.packed", Perceptron(), quantized=True).eval()
    assert torch.equal(loaded(x), model(x))
    buffer = io.BytesIO()
    torch.save(find(model).state_dict(), buffer)
    buffer.seek(0)
    again = Perceptron()
    again.load_state_dict(model.state_dict())
    prepare(again, activation_bits=8, example_inputs=x, reduce_range=True)
    state = torch.load(buffer, weights_only=True)
    find(again).load_state_dict(state)
    assert torch.equal(again.eval()(x), model(x))


def test_patterns_name_them() -> None:
    assert list(find(prepared(ignore=["kernel"])).layers) == ["matrix"]
    chosen = find(prepared(targets=["kernel"], overrides={"kernel": {"weight_bits": 3}}))
    assert {name: layer.spec.bits for name, layer in chosen.layers.items()} == {"kernel": 3}


def test_a_parameter_that_no_function_reads_as_a_weight_is_refused_as_a_target() -> None:
    with pytest.raises(CompressionError, match=r"targets.*table.*no F\.linear, F\.conv"):
        prepare(Perceptron(), targets=["table"], example_inputs=images())


@pytest.mark.parametrize("activation_bits", [8, None])
def test_the_callback_finds_them_in_the_first_batch(activation_bits: int | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Perceptron()
    callback = QuantizationAwareTraining(activation_bits=activation_bits)
    loader = DataLoader(TensorDataset(images(16), torch.randint(5, (16,))), batch_size=4)
    trainer = L.Trainer(
        max_epochs=1, callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, loader)
    assert list(find(model).layers) == ["kernel", "matrix"]
    x = images()
    with_quantizers = model.eval()(x)
    find(model).enabled = False
    assert not torch.equal(model(x), with_quantizers)
