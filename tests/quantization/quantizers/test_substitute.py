from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lightning_compress.quantization import find, prepare
from lightning_compress.quantization.quantizers.substitute import Shadow, Shadows
from lightning_compress.quantization.quantizers.weight import WeightQuantizer


class Twice:
    """Makes a tensor that is twice a parameter, and counts how often."""

    def __init__(self, module: nn.Module, attribute: str) -> None:
        self.module, self.attribute, self.made = module, attribute, 0

    def __call__(self) -> torch.Tensor:
        self.made += 1
        return 2 * getattr(self.module, self.attribute)


def test_a_forward_reads_the_tensors_and_nothing_of_them_stays() -> None:
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    weight, bias = layer.weight, layer.bias
    twice = [Twice(layer, name) for name in ("weight", "bias")]
    handles = Shadows([Shadow(layer, each.attribute, each) for each in twice]).attach(layer)
    torch.testing.assert_close(layer(x), 2 * (x @ weight.T + bias))
    assert [each.made for each in twice] == [1, 1]
    assert layer.weight is weight
    assert layer.bias is bias
    assert set(layer.state_dict()) == {"weight", "bias"}
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(layer(x), x @ weight.T + bias)


def test_the_innermost_of_two_hosts_leaves_the_outer_one_its_tensor() -> None:
    layer = nn.Linear(3, 3, bias=False)
    outer = nn.Sequential(layer, layer)
    twice = Twice(layer, "weight")
    for host in (outer, layer):
        Shadows([Shadow(layer, "weight", twice)]).attach(host)
    x = torch.randn(4, 3)
    torch.testing.assert_close(outer(x), 4 * x @ layer.weight.T @ layer.weight.T)
    assert twice.made == 1, "made by the outer one, read by both calls of the inner one"


def test_a_copy_shadows_its_own_parameters() -> None:
    layer = nn.Linear(3, 2, bias=False)
    Shadows([Shadow(layer, "weight", Twice(layer, "weight"))]).attach(layer)
    copied = copy.deepcopy(layer)
    with torch.no_grad():
        copied.weight.fill_(1.0)
    assert copied(torch.ones(3)).tolist() == [6.0, 6.0]


@pytest.mark.parametrize("failing", ["forward", "second weight"])
def test_a_forward_that_fails_leaves_the_parameters(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.LSTM(4, 4)
    prepare(model, weight_bits=4, activation_bits=None)
    x, parameters = torch.randn(5, 2, 4), dict(model.named_parameters())
    expected = model(x)[0]
    if failing == "forward":
        with pytest.raises(RuntimeError, match="input_size"):
            model(torch.randn(5, 2, 7))
    else:
        scale = WeightQuantizer.scale
        names = list(find(model).layers)

        def out_of_memory(self: WeightQuantizer) -> torch.Tensor:
            if self.name == names[1]:
                raise torch.OutOfMemoryError("no room for the second weight")
            return scale(self)

        with monkeypatch.context() as patched:
            patched.setattr(WeightQuantizer, "scale", out_of_memory)
            with pytest.raises(torch.OutOfMemoryError):
                model(x)
    assert all(getattr(model, name) is parameter for name, parameter in parameters.items())
    assert all(any(one is parameter for one in model._flat_weights) for parameter in parameters.values())
    assert torch.equal(model(x)[0], expected)
