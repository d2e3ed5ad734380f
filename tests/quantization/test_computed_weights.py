"""Layers whose weight is made from other parameters, by weight norm for one: quantized where a function is given it.

Where no forward was recorded they stay float, and it is said.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from lightning_compress import CompressionError
from lightning_compress.export import load_packed, save_packed, to_onnx
from lightning_compress.export.onnx.integer_share import integer_share
from lightning_compress.export.onnx.session import OnnxModel
from lightning_compress.quantization import QuantizationSettings, find, prepare
from lightning_compress.quantization.attach import install

REMEDIES: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "weight_norm": (parametrizations.weight_norm, "WeightNorm.*remove_parametrizations"),
    "spectral_norm": (parametrizations.spectral_norm, "SpectralNorm.*remove_parametrizations"),
    "old weight_norm": (weight_norm, "remove_weight_norm"),
    "old spectral_norm": (spectral_norm, "remove_spectral_norm"),
    "pruned": (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), r"prune\.remove"),
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(4, 4),
    "convolution": lambda: nn.Conv1d(4, 4, 1),
    "transposed": lambda: nn.ConvTranspose1d(4, 4, 1),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("how", REMEDIES)
def test_a_layer_with_a_computed_weight_is_listed_with_the_remedy(how: str, layer: str) -> None:
    compute, remedy = REMEDIES[how]
    model = nn.Sequential(compute(LAYERS[layer]()), nn.Linear(4, 4))
    prepare(model, activation_bits=None)
    assert list(find(model).layers) == ["1.weight"]
    (line,) = find(model).unreached
    assert line.startswith("0.weight: its weight is computed")
    with pytest.raises(CompressionError, match=f"nothing to quantize.*0.weight: .*{remedy}"):
        prepare(nn.Sequential(compute(LAYERS[layer]())), activation_bits=None)


def test_a_recurrent_layer_is_listed_by_the_weight_that_is_computed() -> None:
    model = parametrizations.weight_norm(nn.GRU(4, 4), "weight_hh_l0")
    prepare(model, activation_bits=None)
    assert list(find(model).layers) == ["weight_ih_l0"]
    assert [line.partition(":")[0] for line in find(model).unreached] == ["weight_hh_l0"]


def test_a_projection_of_attention_is_listed() -> None:
    model = nn.MultiheadAttention(4, 2)
    parametrizations.weight_norm(model.out_proj)
    prepare(model, activation_bits=None)
    assert [line.partition(":")[0] for line in find(model).unreached] == ["out_proj.weight"]


def test_a_layer_left_out_is_not_listed() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    prepare(model, activation_bits=None, ignore=["0"])
    assert find(model).unreached == []


def test_looking_at_a_spectral_norm_does_not_take_its_steps() -> None:
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prepare(model, activation_bits=None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Standardized(nn.Conv2d):
    """A convolution that standardizes its weight in its forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Scaled(nn.Module):
    """A linear layer of parameters with a factor each, as in StyleGAN."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.shift = nn.Parameter(torch.randn(16, 4)), nn.Parameter(torch.randn(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.matrix * 0.5, bias=self.shift * 2)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        Standardized(3, 8, 3), nn.ReLU(), parametrizations.weight_norm(nn.Conv2d(8, 8, 3)), nn.ReLU(),
        parametrizations.spectral_norm(nn.Conv2d(8, 4, 3)), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        Scaled(), nn.GELU(), nn.Linear(16, 3),
    )  # fmt: skip


COMPUTED = [
    "0:conv2d[0]:input[1]", "2:conv2d[0]:input[1]", "4:conv2d[0]:input[1]", "8:linear[0]:input[1]",
]  # fmt: skip


def trained() -> tuple[nn.Module, torch.Tensor]:
    model, x = network(), torch.randn(4, 3, 10, 10)
    prepare(model, example_inputs=x)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model.eval(), x


def test_a_computed_weight_is_quantized_as_it_is_computed() -> None:
    x, model = torch.randn(2, 3, 4, 4), nn.Sequential(Standardized(3, 4, 2), nn.Conv2d(4, 2, 1))
    quantization, layer = find(prepare(model, example_inputs=x, activation_bits=None)), model[0]
    assert (list(quantization.layers), list(quantization.weights.computed)) == (["1.weight"], ["0:conv2d[0]:input[1]"])
    assert quantization.unreached == []
    weight = layer.weight.detach().double() - layer.weight.detach().double().mean((1, 2, 3), keepdim=True)
    scale = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    expected = F.conv2d(x.double(), torch.round(weight / scale) * scale, layer.bias.detach().double())
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-5)
    quantization.enabled = False
    torch.testing.assert_close(layer(x), F.conv2d(x, weight.float(), layer.bias))


def test_gradients_reach_what_a_weight_is_computed_from() -> None:
    model, plain, x = Scaled(), Scaled(), torch.randn(8, 4)
    plain.load_state_dict(model.state_dict())
    prepare(model, example_inputs=x)
    for net in (model, plain):
        net(x).sum().backward()
    # The gradient of a sum is that of the inputs, which pass the input's grid.
    torch.testing.assert_close(model.matrix.grad, plain.matrix.grad, rtol=0, atol=0.1)
    assert torch.equal(model.shift.grad, plain.shift.grad)


def test_a_file_holds_computed_weights_in_integers_and_says_what_the_model_says(tmp_path: Path) -> None:
    model, x = trained()
    quantization = find(model)
    assert (list(quantization.weights.computed), list(quantization.layers)) == (COMPUTED, ["10.weight"])
    assert quantization.unreached == []
    file = to_onnx(model, x, tmp_path / "model.onnx").path
    session = OnnxModel(file, model.forward)
    with torch.no_grad():
        torch.testing.assert_close(session(x)[0], model(x), rtol=1e-4, atol=1e-5)
    assert integer_share(file, session.feed(x)).share == 1.0


def test_a_packed_file_and_a_state_bring_computed_weights_back(tmp_path: Path) -> None:
    model, x = trained()
    save_packed(model, tmp_path / "model.packed")
    loaded = load_packed(tmp_path / "model.packed", network(seed=1)).eval()
    again = prepare(network(seed=1), example_inputs=x).eval()
    again.load_state_dict(model.state_dict())
    find(again).load_state_dict(find(model).state_dict())
    fresh = network(seed=1).eval()
    fresh.load_state_dict(model.state_dict())
    install(fresh, QuantizationSettings()).load_state_dict(find(model).state_dict())
    with torch.no_grad():
        for other in (loaded, again, fresh):
            assert list(find(other).weights.computed) == COMPUTED
            torch.testing.assert_close(other(x), model(x), rtol=1e-6, atol=1e-6)


def test_bits_and_patterns_are_those_of_the_layer() -> None:
    x, few = torch.randn(4, 3, 10, 10), {"weight_bits": 4}
    model = prepare(
        network(), example_inputs=x, ignore=["8.matrix"], overrides={"0": few, "2": few, "4": {"weight_bits": None}}
    )
    quantization = find(model)
    assert {name: weight.spec.bits for name, weight in quantization.weights.computed.items()} == dict.fromkeys(
        COMPUTED[:2], 4
    )
    assert [line.partition(":")[0] for line in quantization.unreached] == ["4.weight", "8.matrix"]


def test_a_table_that_is_looked_up_and_scaled_for_the_outputs_stays_quantized() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.body = nn.Embedding(10, 4), nn.Linear(4, 4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return F.linear(self.body(self.table(ids)), self.table.weight * 0.5)

    quantization = find(prepare(Tied(), example_inputs=torch.randint(0, 10, (3,))))
    assert list(quantization.layers) == ["table.weight", "body.weight"]
    assert list(quantization.weights.computed) == ["model:linear[0]:input[1]"]


def test_recurrent_layers_without_an_integer_kernel_are_listed_in_one_line() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LSTM(4, 4, batch_first=True), nn.GRU(4, 4, batch_first=True)
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.second(self.first(x)[0])[0])

    x = torch.randn(2, 3, 4)
    (line,) = find(prepare(Tagger(), example_inputs=x)).unreached
    assert line.startswith("first, second: onnxruntime has no integer kernel")
    assert find(prepare(Tagger(), example_inputs=x, backend="openvino")).unreached == []
