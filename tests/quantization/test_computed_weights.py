"""Layers whose weight is made from other parameters, by weight norm for one: they stay float, and it is said."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from lightning_compress import CompressionError
from lightning_compress.quantization import find, prepare

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
        prepare(nn.Sequential(compute(LAYERS[layer]())), example_inputs=torch.randn(2, 4, 4))


def test_it_stays_listed_once_activations_are_placed() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    prepare(model, example_inputs=torch.randn(2, 4))
    assert find(model).activations
    assert any(line.startswith("0.weight: ") for line in find(model).unreached)


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


def test_a_weight_that_a_forward_computes_is_listed_with_the_line() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Standardized(4, 4, 1))
    (line,) = find(prepare(model, example_inputs=torch.randn(2, 3, 4, 4))).unreached
    assert line.startswith("1.weight: the weight of conv2d at test_computed_weights.py:")


def test_layers_that_compute_their_weights_in_one_place_are_listed_in_one_line() -> None:
    model = nn.Sequential(Standardized(3, 4, 1), Standardized(4, 4, 1), nn.Conv2d(4, 2, 1))
    (line,) = find(prepare(model, example_inputs=torch.randn(2, 3, 4, 4))).unreached
    assert line.startswith("0.weight, 1.weight: the weight of conv2d at test_computed_weights.py:")


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
