from __future__ import annotations

import itertools
import math

import pytest
import torch
from networks import EncoderNet
from torch import nn
from torch.func import functional_call

from lightning_compress.apps.advise.hessian import signs, traces
from lightning_compress.errors import CompressionError


def exact(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """Traces of the diagonal blocks of the Hessian, entry by entry."""
    found = {}
    for name, parameter in model.named_parameters():

        def loss(value: torch.Tensor, name: str = name) -> torch.Tensor:
            return nn.functional.cross_entropy(functional_call(model, {name: value}, (x,)), y)

        hessian = torch.autograd.functional.hessian(loss, parameter.detach())
        found[name] = float(hessian.reshape(parameter.numel(), -1).diagonal().sum())
    return found


@pytest.fixture
def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3, bias=False)).double()
    return model, torch.randn(16, 3, dtype=torch.float64), torch.randint(3, (16,))


def test_the_mean_over_all_sign_vectors_is_the_trace(problem: tuple[nn.Module, torch.Tensor, torch.Tensor]) -> None:
    model, x, y = problem
    weight = {"2.weight": model.get_parameter("2.weight")}
    every = [
        {"2.weight": torch.tensor(s, dtype=torch.float64).view(3, 4)} for s in itertools.product((-1.0, 1.0), repeat=12)
    ]
    found = traces(lambda: [nn.functional.cross_entropy(model(x), y)], weight, every)
    assert found["2.weight"].value == pytest.approx(exact(model, x, y)["2.weight"], rel=1e-9)


def test_random_signs_estimate_every_block_within_the_error_that_is_told(
    problem: tuple[nn.Module, torch.Tensor, torch.Tensor],
) -> None:
    model, x, y = problem
    parameters = dict(model.named_parameters())
    found = traces(lambda: [nn.functional.cross_entropy(model(x), y)], parameters, signs(parameters, 400))
    for name, expected in exact(model, x, y).items():
        assert abs(found[name].value - expected) < 4 * found[name].error
        assert found[name].error < 0.2 * abs(expected) + 0.02


def test_the_loss_is_the_mean_over_the_batches(problem: tuple[nn.Module, torch.Tensor, torch.Tensor]) -> None:
    model, x, y = problem
    parameters = dict(model.named_parameters())

    def batches() -> list[torch.Tensor]:
        return [nn.functional.cross_entropy(model(x[k : k + 8]), y[k : k + 8]) for k in (0, 8)]

    whole = traces(lambda: [nn.functional.cross_entropy(model(x), y)], parameters, signs(parameters, 3))
    parts = traces(batches, parameters, signs(parameters, 3))
    for name in parameters:
        assert parts[name].value == pytest.approx(whole[name].value, rel=1e-9)


def test_attention_is_differentiated_twice() -> None:
    model, x = EncoderNet().eval(), torch.randn(2, 3, 6)
    parameters = {"encoder.layers.0.linear1.weight": model.get_parameter("encoder.layers.0.linear1.weight")}
    found = traces(lambda: [model(x).square().mean()], parameters, signs(parameters, 2))
    assert math.isfinite(found["encoder.layers.0.linear1.weight"].value)


def test_equal_seeds_give_equal_probes_and_leave_the_global_generator_alone() -> None:
    parameters = {"w": torch.zeros(50)}
    before = torch.random.get_rng_state()
    one, other = (next(signs(parameters, 1, seed=3))["w"] for _ in range(2))
    assert torch.equal(one, other)
    assert set(one.tolist()) == {-1.0, 1.0}
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_loss_without_a_second_derivative_is_refused_with_the_other_criterion() -> None:
    model = EncoderNet().eval()
    parameters = {"embed.weight": model.get_parameter("embed.weight")}
    # Made before, so with the fused attention kernel.
    fused = [model(torch.randn(2, 3, 6)).square().mean()]
    with pytest.raises(CompressionError, match=r"cannot be differentiated twice: .* Use --criterion loss"):
        traces(lambda: fused, parameters, signs(parameters, 1))
