"""Which layer gets how many bits: first and last layers, bits that change while training, weights within 7 bits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from networks import Gpt, Mlp, ResidualNet, Tagger
from torch import nn

from lightning_compress import CompressionError
from lightning_compress.quantization import find, prepare
from lightning_compress.quantization.bit_schedule import BitSchedule
from lightning_compress.quantization.model import Quantization
from lightning_compress.quantization.quantizers.searched import _EVERY
from lightning_compress.quantization.ranges import observers


def quantization_of(model: nn.Module, x: torch.Tensor, **settings: object) -> Quantization:
    found = find(prepare(model, example_inputs=x, **settings))
    assert found is not None
    model.train()
    model(x)
    return found


def weight_bits(quantization: Quantization) -> dict[str, int]:
    return {name: layer.spec.bits for name, layer in quantization.layers.items()}


def test_first_and_last_layers_keep_eight_bits_and_their_inputs_too() -> None:
    found = quantization_of(ResidualNet(), torch.randn(2, 3, 8, 8), weight_bits=4, activation_bits=3)
    wide = {name for name, bits in weight_bits(found).items() if bits == 8}
    assert wide == {"stem.0.weight", "fc.weight"}
    assert set(weight_bits(found).values()) == {4, 8}
    inputs = {name: found.activations[site].bits for name, site in found.layer_input.items()}
    assert inputs.pop("stem.0.weight") == inputs.pop("fc.weight") == 8
    assert set(inputs.values()) == {3}


def test_first_and_last_follow_the_data_and_not_the_order_of_construction() -> None:
    class HeadFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body, self.stem = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(self.stem(x).relu()).relu())

    found = quantization_of(HeadFirst(), torch.randn(5, 3), weight_bits=2, activation_bits=None)
    assert weight_bits(found) == {"head.weight": 8, "body.weight": 2, "stem.weight": 8}


@pytest.mark.parametrize(
    ("network", "wide"),
    [
        (Gpt, {"tokens.weight", "positions.weight"}),  # the head is tied to the tokens
        (Tagger, {"tokens.weight", "head.weight"}),
    ],
)
def test_embeddings_are_first_layers(network: type[nn.Module], wide: set[str]) -> None:
    found = quantization_of(network(), torch.randint(0, 24, (2, 8)), weight_bits=4)
    assert {name for name, bits in weight_bits(found).items() if bits == 8} == wide


def test_an_override_and_the_setting_switch_the_eight_bits_off() -> None:
    x = torch.randn(2, 12)
    found = quantization_of(Mlp(), x, weight_bits=4, overrides={"1": {"weight_bits": 4}})
    assert weight_bits(found) == {"1.weight": 4, "3.weight": 4, "5.weight": 8}
    found = quantization_of(Mlp(), x, weight_bits=4, first_last_bits=None)
    assert set(weight_bits(found).values()) == {4}


def test_a_model_whose_every_layer_is_a_first_or_last_one_gets_what_was_asked() -> None:
    found = quantization_of(
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 4), weight_bits=3
    )
    assert set(weight_bits(found).values()) == {3}


@pytest.mark.parametrize("how", ["minmax", "percentile", "mse", "learned"])
def test_fewer_bits_take_effect_at_once_and_ranges_follow(how: str) -> None:
    torch.manual_seed(0)
    model, x = Mlp(), torch.randn(64, 12)
    found = quantization_of(model, x, range=how)
    found.set_bits(4, 3)
    assert weight_bits(found) == {"1.weight": 8, "3.weight": 4, "5.weight": 8}
    middle = found.activations[found.layer_input["3.weight"]]
    assert middle.bits == 3
    model.eval()(x)
    seen = middle(torch.linspace(-5, 5, 1001)).detach()
    assert 2 <= len(seen.unique()) <= 8
    model.train()(x)
    layer = found.layers["3.weight"]
    assert len(np.unique(layer.integers().numpy())) <= 15
    if how == "learned":
        # Steps start anew from the range of least squared error.
        expected = observers.weight_scale(layer.weight, layer.axis, 7, "mse")
        torch.testing.assert_close(layer.scale(), expected)


def test_bits_that_changed_are_restored_with_the_state() -> None:
    model, x = Mlp(), torch.randn(16, 12)
    found = quantization_of(model, x, range="learned")
    found.set_bits(4, 4)
    other = copy.deepcopy(Mlp())
    other.load_state_dict(model.state_dict())
    fresh = find(prepare(other, range="learned", example_inputs=x))
    fresh.load_state_dict(found.state_dict())
    assert weight_bits(fresh) == weight_bits(found)
    for net in (model, other):
        net.train()(x)
    assert torch.equal(model.eval()(x), other.eval()(x))


def test_float_weights_cannot_become_integers_on_the_way() -> None:
    found = quantization_of(Mlp(), torch.randn(2, 12), weight_bits=None)
    with pytest.raises(CompressionError, match=r"set_bits\.weight_bits: expected"):
        found.set_bits(4, 4)


def test_a_reduced_range_keeps_weights_within_seven_bits() -> None:
    found = quantization_of(Mlp(), torch.randn(8, 12), reduce_range=True)
    for layer in found.layers.values():
        assert int(layer.integers().abs().max()) == 63


@pytest.mark.parametrize("how", ["mse", "percentile"])
def test_a_searched_range_is_kept_and_searched_for_again_after_a_while(how: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(64, 8, bias=False)
    prepare(model, weight_bits=3, activation_bits=None, range=how)
    layer = next(iter(find(model).layers.values()))
    x = torch.randn(2, 64)
    model.train()(x)
    first = observers.weight_scale(model.weight, 0, 3, how)
    torch.testing.assert_close(layer.scale(), first)
    ratio = first / observers.weight_scale(model.weight, 0, 3, "minmax")
    with torch.no_grad():
        model.weight[:, 0] = 30.0  # an outlier, which the search would clip
    model(x)
    # The ratio stays; the largest weight is looked at each time.
    torch.testing.assert_close(layer.scale(), ratio * observers.weight_scale(model.weight, 0, 3, "minmax"))
    for _ in range(_EVERY):
        model(x)
    torch.testing.assert_close(layer.scale(), observers.weight_scale(model.weight, 0, 3, how))
    before = layer.scale().clone()
    model.eval()(x)
    assert torch.equal(layer.scale(), before)


def test_a_squared_error_range_of_activations_is_searched_for_at_every_tenth_forward() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    prepare(model, range="mse", example_inputs=torch.randn(2, 4))
    model.train()
    (quantizer,) = find(model).activations.values()
    moved = []
    for _ in range(21):
        before = quantizer.range.clone()
        model(torch.randn(64, 4))
        moved.append(not torch.equal(before.nan_to_num(), quantizer.range.nan_to_num()))
    assert [step for step, one in enumerate(moved) if one] == [0, 10, 20]


@pytest.mark.parametrize("plan", [{}, {0: 4, 0.5: 8}, {0: 8, 0.5: 8}, {0: 8, 0.5: None}])
def test_bits_that_do_not_fall_are_refused(plan: dict[float, int | None]) -> None:
    with pytest.raises(CompressionError, match="weight_bits"):
        BitSchedule.of(plan, "weights", "demo.weight_bits")
