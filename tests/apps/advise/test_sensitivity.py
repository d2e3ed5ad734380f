from __future__ import annotations

import copy
import math

import pytest
import torch
from networks import Gpt, ResidualNet, Tagger
from torch import nn

from lightning_compress.apps.advise.hessian import Trace
from lightning_compress.apps.advise.layer_options import Place, all_compressed, compressed, places
from lightning_compress.apps.advise.sensitivity import Layer, Option, Work, measure
from lightning_compress.errors import CompressionError
from lightning_compress.pruning.settings import Settings
from lightning_compress.quantization.settings import QuantizationSettings

PRUNING = Settings.check(final_sparsity=0.5, field="GradualMagnitudePruning", start=0, end=1.0)
QUANTIZATION = QuantizationSettings(weight_bits=4, activation_bits=8, field="QuantizationAwareTraining")


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    """Equal bit for bit, signs of zeros included."""
    return all(
        torch.equal(value.reshape(-1).view(torch.uint8), before[name].reshape(-1).view(torch.uint8))
        for name, value in model.state_dict().items()
    )


def plainly(weight: torch.Tensor, sparsity: float, bits: int) -> torch.Tensor:
    """Magnitude pruning and symmetric rounding with a scale for each output channel, in a few lines."""
    flat = weight.flatten().clone()
    flat[flat.abs().argsort(stable=True)[: round(sparsity * flat.numel())]] = 0.0
    rows = flat.view(weight.shape[0], -1)
    qmax = 2 ** (bits - 1) - 1
    scale = rows.abs().amax(1, keepdim=True) / qmax
    scale = torch.where(scale > 0, scale, scale.max())
    return ((rows / scale).round().clamp(-qmax, qmax) * scale).view(weight.shape)


def test_every_rise_is_that_of_a_plain_loop_over_copies() -> None:
    model = ResidualNet().eval()
    x, y = torch.randn(32, 3, 8, 8), torch.randint(5, (32,))

    def loss(net: nn.Module) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(net(x), y))

    before = state(model)
    among = places(model, PRUNING, QUANTIZATION, (0.0, 0.75), (8, 3))
    base, layers = measure(among, lambda: loss(model))
    assert base == loss(model)
    assert len(layers) == 7
    for layer in layers:
        assert [(o.sparsity, o.bits) for o in layer.options] == [(0.0, 8), (0.0, 3), (0.75, 8), (0.75, 3)]
        for option in layer.options:
            other = copy.deepcopy(model)
            weight = other.get_parameter(layer.name)
            assert option.bits is not None
            expected = plainly(weight.detach(), option.sparsity, option.bits)
            assert option.distance == pytest.approx(float((expected - weight.detach()).square().sum()), rel=1e-4)
            weight.data.copy_(expected)
            assert option.loss == pytest.approx(loss(other) - base, abs=1e-6)
    assert unchanged(model, before)


def test_bytes_are_the_entropy_of_the_integers_and_the_scales() -> None:
    model = nn.Sequential(nn.Linear(64, 32))
    (place,) = places(model, PRUNING, QUANTIZATION, (0.5,), (4,))
    with compressed(place, 0.5, 4) as change:
        quantized = model[0].weight.detach()
        integers = (quantized / (quantized.abs().amax(1, keepdim=True) / 7)).round().int()
    counts = integers.unique(return_counts=True)[1].double()
    entropy = -float((counts / counts.sum() * (counts / counts.sum()).log2()).sum())
    assert change.bytes == pytest.approx(64 * 32 * entropy / 8 + 4 * 32, rel=1e-6)


def test_the_model_is_restored_to_the_bit_when_the_loss_fails() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[0] = torch.tensor([-0.0, 0.0, 1e-40, -3.0])
    before = state(model)
    among = places(model, PRUNING, QUANTIZATION, (0.5,), (2,))
    calls = 0

    def fails() -> float:
        nonlocal calls
        calls += 1
        if calls > 1:
            assert not unchanged(model, before)
            raise RuntimeError("no memory")
        return 0.0

    with pytest.raises(RuntimeError, match="no memory"):
        measure(among, fails)
    assert unchanged(model, before)


def test_several_weights_are_compressed_together_and_restored() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    before = state(model)
    among = places(model, PRUNING, QUANTIZATION, (0.0, 0.5), (2, 8))
    with all_compressed({"0.weight": (0.5, 8), "2.weight": (0.0, 2)}, among) as changes:
        assert int((model[0].weight == 0).sum()) == 32
        assert len(model[2].weight.detach()[0].unique()) <= 3
    assert set(changes) == {"0.weight", "2.weight"}
    assert unchanged(model, before)


def test_a_tied_weight_is_one_place_and_an_embedding_is_not_pruned() -> None:
    model = Gpt()
    found = {place.name: place for place in places(model, PRUNING, QUANTIZATION, (0.0, 0.5), (8, 4))}
    assert "head.weight" not in found
    assert found["positions.weight"].sparsities == (0.0,)
    assert found["positions.weight"].bits == (8, 4)
    assert found["blocks.0.up.weight"].sparsities == (0.0, 0.5)


def test_recurrent_weights_are_measured() -> None:
    model, x = Tagger().eval(), torch.randint(24, (4, 6))
    before = state(model)
    among = [p for p in places(model, PRUNING, QUANTIZATION, (0.9,), (2,)) if p.name == "lstm.weight_ih_l0"]
    with torch.no_grad():
        _, (layer,) = measure(among, lambda: float(model(x).square().mean()))
    assert layer.options[0].loss != 0.0
    assert unchanged(model, before)


def test_settings_of_ones_own_narrow_the_choice() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    pruning = Settings.check(
        final_sparsity=0.5, overrides={"0": {"final_sparsity": 0.25}, "1": None}, field="p", start=0, end=1.0
    )
    quantization = QuantizationSettings(4, 8, overrides={"2": {"weight_bits": 6}}, ignore=["0"])
    found = {p.name: (p.sparsities, p.bits) for p in places(model, pruning, quantization, (0.0, 0.5), (8, 4))}
    assert found == {
        "0.weight": ((0.25,), (None,)),
        "1.weight": ((0.0,), (8, 4)),
        "2.weight": ((0.0, 0.5), (6,)),
    }


def test_blocks_are_pruned_as_blocks() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    (place,) = places(
        model, Settings.check(final_sparsity=0.5, pattern="block:1x4", field="p", start=0, end=1.0), None, (0.5,), ()
    )
    with compressed(place, 0.5, None):
        zeros = (model[0].weight == 0).view(8, 2, 4)
    assert bool((zeros.all(2) | ~zeros.any(2)).all())
    assert int(zeros.sum()) == 32


def test_a_pattern_without_a_choice_is_refused() -> None:
    pruning = Settings.check(final_sparsity=0.5, pattern="2:4", field="GradualMagnitudePruning", start=0, end=1.0)
    with pytest.raises(CompressionError, match=r"GradualMagnitudePruning.pattern: .* got '2:4'. Add pruning=none"):
        places(nn.Sequential(nn.Linear(8, 8)), pruning, None, (0.0, 0.5), ())


def test_bit_operations_are_those_of_the_layer() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    among = places(model, PRUNING, QUANTIZATION, (0.9,), (3,))
    _, (layer,) = measure(among, lambda: 0.0, work={"0.weight": Work(macs=32, activation_bits=8)})
    assert layer.options[0].bit_operations == 32 * 3 * 8


def test_a_loss_that_is_not_a_number_is_no_option() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    among = places(model, PRUNING, QUANTIZATION, (0.0, 0.9), (8,))
    values = iter([1.0, 1.5, math.nan])
    _, (layer,) = measure(among, lambda: next(values))
    assert [(o.sparsity, o.loss) for o in layer.options] == [(0.0, 0.5)]


def test_costs_follow_the_criterion() -> None:
    options = (Option(0.0, 8, -0.1, 2.0, 1, 1), Option(0.5, 8, 0.3, 4.0, 1, 1))
    layer = Layer("fc.weight", 10, options, Trace(5.0, 0.1))
    assert layer.costs("loss") == [0.0, 0.3]
    assert layer.costs("hessian") == [0.5, 1.0]
    assert Layer("fc.weight", 10, options, Trace(-5.0, 0.1)).costs("hessian") == [0.0, 0.0]


def test_progress_is_told_for_every_setting() -> None:
    among: list[Place] = places(nn.Sequential(nn.Linear(4, 4)), PRUNING, QUANTIZATION, (0.0, 0.5), (2, 4))
    told: list[tuple[int, int]] = []
    measure(among, lambda: 0.0, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
