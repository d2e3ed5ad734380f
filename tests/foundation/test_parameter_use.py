"""What one forward shows of a network's parameters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.parameter_use import ParameterUse, record_use
from lightning_compress.pruning import Pruner


class Reads(nn.Module):
    """One parameter, read by the function given."""

    def __init__(self, function, *shape):
        super().__init__()
        self.function = function
        self.matrix = nn.Parameter(torch.randn(shape) * 0.1)

    def forward(self, x):
        return self.function(x, self.matrix)


def use_of(function, *shape, x=(2, 8)) -> ParameterUse:
    return record_use(Reads(function, *shape), torch.randn(x), "demo")


@pytest.mark.parametrize(
    ("function", "shape", "summed"),
    [
        (lambda x, w: F.linear(x, w), (4, 8), 1),
        (lambda x, w: F.linear(x, weight=w, bias=None), (4, 8), 1),
        (lambda x, w: x @ w, (8, 4), 0),
        (lambda x, w: x @ w.T, (4, 8), 1),
        (lambda x, w: x @ w.t(), (4, 8), 1),
        (lambda x, w: torch.addmm(torch.zeros(4), x, w), (8, 4), 0),
        (lambda x, w: torch.bmm(x.expand(3, 2, 8), w), (3, 8, 4), 1),
        (lambda x, w: w @ x.T, (4, 8), 1),
        (lambda x, w: x @ w.transpose(-1, -2), (4, 8), 1),
        (lambda x, w: x @ w.view(8, 4), (32, 1), None),
        (lambda x, w: torch.einsum("bi,eio->beo", x, w), (3, 8, 4), None),
        (lambda x, w: F.linear(x, w * 0.5), (4, 8), 1),
        (lambda x, w: F.linear(x, 0.5 * w / w.square().mean().sqrt()), (4, 8), 1),
        (lambda x, w: F.linear(x, w.tanh()), (4, 8), None),
        (lambda x, w: F.linear(x, w[1]), (2, 4, 8), None),
        (lambda x, w: torch.cat([x @ part for part in w.chunk(2, 1)], 1), (8, 4), None),
    ],
)
def test_a_weight_is_what_a_product_reads_with_its_zeros(function, shape, summed):
    assert use_of(function, *shape).weights == {"matrix": summed}


@pytest.mark.parametrize(
    ("function", "shape", "lost_by"),
    [
        (lambda x, w: F.linear(x, w - w.mean(1, keepdim=True)), (4, 8), "sub"),
        (lambda x, w: F.linear(x, F.layer_norm(w, (8,))), (4, 8), "layer_norm"),
        (lambda x, w: F.linear(x, w.softmax(1)), (4, 8), "softmax"),
        (lambda x, w: F.linear(x, w + 1), (4, 8), "add"),
    ],
)
def test_a_weight_is_not_what_loses_the_zeros_on_the_way(function, shape, lost_by):
    use = use_of(function, *shape)
    assert use.weights == {}
    assert use.computed == {"matrix": lost_by}


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x, p: x + p, (2, 8)),
        (lambda x, p: F.linear(x + p, torch.ones(4, 8)), (2, 8)),
        (lambda x, p: (x + p) @ x.T, (2, 8)),
        (lambda x, p: (x * p[:1]) @ x.T, (2, 8)),
        (lambda x, p: torch.addmm(p, x, x.T), (2, 2)),
        (lambda x, p: F.layer_norm(x, (2, 8), p), (2, 8)),
        (lambda x, p: torch.cat([p, x]) @ x.T, (2, 8)),
    ],
)
def test_what_activations_are_added_to_or_scaled_by_is_no_weight(function, shape):
    use = use_of(function, *shape)
    assert use.weights == use.computed == {}
    assert use.seen == {"matrix"}


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: F.embedding(x.long().abs() % 4, w),
        lambda x, w: w[x.long().abs() % 4],
        lambda x, w: x @ w[torch.arange(4)].T,
        lambda x, w: w.index_select(0, torch.arange(2)),
    ],
)
def test_a_table_is_looked_up_in(function):
    use = use_of(function, 4, 8)
    assert use.tables == {"matrix"}
    assert use.weights == {}


def test_the_recording_changes_neither_modes_nor_random_numbers_nor_buffers():
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    assert record_use(net, torch.randn(3, 8, generator=torch.Generator()), "demo").weights == {
        "0.weight": 1,
        "3.weight": 1,
    }
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in before.items())


def test_inputs_that_do_not_fit_are_refused_in_words():
    with pytest.raises(CompressionError, match=r"Pruner\.example_inputs: Sequential does not run on them \(mat1"):
        Pruner(nn.Sequential(nn.Linear(8, 2)), final_sparsity=0.5, start=0, end=0, example_inputs=torch.zeros(1, 9))


def test_two_of_four_lie_along_the_inputs_of_a_layer_that_holds_in_out():
    torch.manual_seed(0)
    net = Reads(lambda x, w: x @ w, 8, 5)
    weight = net.matrix.detach().clone()
    Pruner(net, final_sparsity=0.5, pattern="2:4", start=0, end=0, example_inputs=torch.zeros(1, 8)).step(0)
    smallest = weight.abs().reshape(2, 4, 5).argsort(1)[:, :2]
    expected = weight.reshape(2, 4, 5).scatter(1, smallest, 0.0).reshape(8, 5)
    torch.testing.assert_close(net.matrix.detach(), expected, rtol=0, atol=0)
