"""What is pruned by default in networks of many kinds, with and without example inputs."""

from __future__ import annotations

import networks
import pruning_networks
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.pruning import Pruner


def pruned(net: nn.Module, x=None, **settings) -> set[str]:
    return set(Pruner(net, final_sparsity=0.5, start=0, end=0, example_inputs=x, **settings).masks)


class InOut(nn.Module):
    """GPT-2's layer."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) * 0.1), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


class Experts(nn.Module):
    """Mixture of experts as in transformers: one parameter of three dimensions for all."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(8, 3)
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 12) * 0.1)
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(3, 12))
        self.down_proj = nn.Parameter(torch.randn(3, 6, 8) * 0.1)

    def forward(self, x):
        gate, up = (torch.bmm(x.expand(3, *x.shape), self.gate_up_proj) + self.gate_up_proj_bias[:, None]).chunk(2, -1)
        mixed = torch.bmm(F.silu(gate) * up, self.down_proj)
        return torch.einsum("ebd,be->bd", mixed, self.router(x).softmax(-1))


class Attention(nn.Module):
    """Everything by hand: a class token, positions, a relative bias, and projections that are bare parameters."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 8))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(5, 5))
        self.rel_pos_h = nn.Parameter(torch.randn(5, 8))
        self.layer_scale = nn.Parameter(torch.ones(5, 8))
        self.qkv = nn.Parameter(torch.randn(8, 24) * 0.1)
        self.mixing = nn.Parameter(torch.randn(5, 5) * 0.1)

    def forward(self, x):
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        q, k, v = (x @ self.qkv).chunk(3, -1)
        scores = q @ k.transpose(1, 2) + self.relative_position_bias_table
        scores = scores + torch.einsum("bqd,kd->bqk", q, self.rel_pos_h)
        return torch.einsum("nm,bmd->bnd", self.mixing, scores.softmax(-1) @ v) * self.layer_scale


class Standardized(nn.Conv2d):
    """Weight standardization: zeros of the weight are no zeros of the kernel."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class Scaled(nn.Linear):
    """An equalized learning rate."""

    def forward(self, x):
        return F.linear(x, self.weight * 0.25, self.bias)


class Tied(nn.Module):
    """A language model whose head is its embedding table."""

    def __init__(self):
        super().__init__()
        self.tokens, self.mix = nn.Embedding(10, 8), nn.Linear(8, 8)

    def forward(self, ids):
        return F.linear(self.mix(self.tokens(ids)), self.tokens.weight)


class Recurrent(nn.Module):
    """A cell by hand, with a learned first state."""

    def __init__(self):
        super().__init__()
        self.w_x, self.w_h = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6, 6))
        self.h0 = nn.Parameter(torch.zeros(1, 6))

    def forward(self, x):
        h = self.h0.expand(len(x), -1)
        for step in x.unbind(1):
            h = torch.tanh(step @ self.w_x + h @ self.w_h)
        return h


IMAGE = torch.randn(2, 3, 8, 8)
MATRIX = torch.randn(2, 8)

KINDS = {
    "in_out": (lambda: nn.Sequential(InOut(8, 4), nn.GELU(), InOut(4, 2)), MATRIX, {"0.weight", "2.weight"}),
    "experts": (Experts, MATRIX, {"router.weight", "gate_up_proj", "down_proj"}),
    "equalized": (lambda: nn.Sequential(Scaled(8, 4)), MATRIX, {"0.weight"}),
    "tied": (Tied, torch.zeros(2, 3, dtype=torch.long), {"mix.weight"}),
    "recurrent_by_hand": (Recurrent, torch.randn(2, 4, 8), {"w_x", "w_h"}),
    "lstm": (lambda: nn.LSTM(8, 4), MATRIX, {"weight_ih_l0", "weight_hh_l0"}),
    "attention": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        torch.randn(2, 5, 8),
        {"self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"},
    ),
    "spectral_norm": (
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(8, 4))),
        MATRIX,
        {"0.weight_orig"},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_inputs", [True, False])
def test_the_weights_are_found_with_and_without_inputs(kind: str, with_inputs: bool) -> None:
    make, x, expected = KINDS[kind]
    assert pruned(make(), x if with_inputs else None) == expected


def test_a_forward_shows_which_bare_parameters_are_weights() -> None:
    net = nn.Sequential(nn.Linear(8, 8), Attention())
    x = torch.randn(2, 4, 8)
    assert pruned(net, x) == {"0.weight", "1.qkv", "1.mixing"}
    with pytest.warns(UserWarning, match=r"stay dense.*1\.qkv \(it is in no known layer"):
        assert pruned(net) == {"0.weight"}


def test_a_parametrized_weight_is_pruned_and_its_magnitudes_are_not() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)))
    pruner = Pruner(net, final_sparsity=0.5, start=0, end=0, example_inputs=MATRIX)
    pruner.step(0)
    assert set(pruner.masks) == {"0.parametrizations.weight.original1"}
    assert int((net[0].weight == 0).sum()) == 16


def test_a_weight_that_its_layer_standardizes_stays_dense_with_a_warning() -> None:
    net = nn.Sequential(Standardized(3, 8, 3), nn.Flatten(), nn.Linear(288, 2))
    with pytest.warns(UserWarning, match=r"27% of the model's parameters stay dense.*0\.weight \(.*sub\(\)"):
        assert pruned(net, IMAGE) == {"2.weight"}


def test_what_the_user_left_out_is_no_news(recwarn: pytest.WarningsRecorder) -> None:
    net = nn.Sequential(Standardized(3, 8, 3), nn.Flatten(), nn.Linear(288, 2))
    pruned(net, IMAGE, ignore=["0"])
    pruned(net, IMAGE, overrides={"0": None})
    pruned(net, IMAGE, targets=["2"])
    assert not [w for w in recwarn if "stay dense" in str(w.message)]


@pytest.mark.parametrize(
    "net",
    [networks.ResidualNet, networks.MobileNet, networks.VisionTransformer, networks.Gpt, pruning_networks.UNet],
)
def test_norms_biases_embeddings_and_positions_stay_dense(net) -> None:
    model = net()
    matrices = {
        f"{name}.weight"
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    }
    matrices |= {f"{name}.in_proj_weight" for name, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)}
    tied = {name for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    assert pruned(model) == {
        name for name in matrices if model.get_parameter(name) not in {model.get_parameter(f"{t}.weight") for t in tied}
    }


class Gained(nn.Conv2d):
    """A convolution with a gain of its own, as in NFNet."""

    def __init__(self):
        super().__init__(3, 8, 3)
        self.gain = nn.Parameter(torch.ones(8, 1, 1, 1))

    def forward(self, x):
        return F.conv2d(x, self.weight * self.gain)


@pytest.mark.parametrize("x", [IMAGE, None])
def test_a_gain_of_a_convolution_is_no_weight(x) -> None:
    assert pruned(nn.Sequential(Gained()), x) == {"0.weight"}


@pytest.mark.parametrize("pattern", ["re:.*", "re:.*weight"])
def test_an_override_changes_settings_and_selects_nothing(pattern: str) -> None:
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    pruner = Pruner(net, final_sparsity=0.5, start=0, end=0, overrides={pattern: {"final_sparsity": 0.25}})
    pruner.step(0)
    assert {name: int((~mask).sum()) for name, mask in pruner.masks.items()} == {"0.weight": 32, "3.weight": 16}


def test_an_override_of_what_is_not_selected_is_refused() -> None:
    with pytest.raises(CompressionError, match=r"Pruner\.overrides: .*select nothing, got '1'.*in targets, too"):
        pruned(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), overrides={"1": {"final_sparsity": 0.25}})


def test_sparsity_over_all_parameters_stands_beside_that_over_the_targets() -> None:
    net = Tied()
    pruner = Pruner(net, final_sparsity=0.5, start=0, end=0)
    pruner.step(0)
    assert pruner.sparsity() == 0.5
    assert pruner.sparsity_of_model() == 32 / (80 + 64 + 8)
    assert pruner.coverage == 64 / (80 + 64 + 8)
