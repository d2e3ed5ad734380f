"""Attention heads: found in any code, pruned as one, and gone from the shrunk network."""

import copy

import networks
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_compress.pruning import Pruner, apply_shapes, shrink
from lightning_compress.pruning.channels.narrow_attention import FewerHeads, GatheredColumns, GatheredRows


class Attention(nn.Module):
    """Attention as it is written in many ways; ``forward`` of the subclasses."""

    def __init__(self, width=16, heads=4, shared=1):
        super().__init__()
        self.heads, self.head_dim, self.all_head_size = heads, width // heads, width
        self.key_heads = heads // shared
        self.norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.k, self.v = nn.Linear(width, width // shared), nn.Linear(width, width // shared)
        self.proj = nn.Linear(width, width)

    def split(self, x):
        q, k, v = (layer(self.norm(x)) for layer in (self.q, self.k, self.v))
        return [
            y.unflatten(-1, (h, -1)).transpose(1, 2)
            for y, h in ((q, self.heads), (k, self.key_heads), (v, self.key_heads))
        ]


class SizesFromTensors(Attention):
    def forward(self, x):
        q, k, v = self.split(x)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Causal(Attention):
    def forward(self, x):
        q, k, v = self.split(x)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class ByHand(Attention):
    """Two matrix products, queries scaled before, and the width of all heads in an attribute."""

    def forward(self, x):
        q, k, v = self.split(x)
        weights = F.dropout(((q * self.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(-1), 0.1, self.training)
        mixed = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous()
        return x + self.proj(mixed.view(*mixed.shape[:2], self.all_head_size))


class SizesFromInput(Attention):
    """The head's width from the input's, as in much code: nothing but the width that there was will do."""

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = (
            layer(self.norm(x)).view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.proj(mixed.reshape(batch, length, width))


class RotarySharedKeys(Attention):
    """Rotary positions, and keys and values that two heads share."""

    def __init__(self):
        super().__init__(shared=2)

    def turn(self, x):
        angle = torch.arange(x.shape[-2])[:, None] * torch.tensor([1.0, 0.1])
        cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    def forward(self, x):
        q, k, v = self.split(x)
        k, v = (y.repeat_interleave(self.heads // self.key_heads, 1) for y in (self.turn(k), v))
        return x + self.proj(F.scaled_dot_product_attention(self.turn(q), k, v).transpose(1, 2).flatten(2))


class Multihead(nn.Module):
    """``nn.MultiheadAttention`` with other widths of keys and values, and both kinds of masks."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, kdim=6, vdim=6, batch_first=False)

    def forward(self, x):
        x, other = x.transpose(0, 1), x.transpose(0, 1)[..., :6]
        length, batch = x.shape[:2]
        causal = torch.ones(length, length, dtype=torch.bool).triu(1).expand(4 * batch, -1, -1)
        padding = torch.zeros(batch, length, dtype=torch.bool)
        padding[:, -1] = True
        return self.attention(x, other, other, key_padding_mask=padding, attn_mask=causal)[0]


WAYS = [SizesFromTensors, Causal, ByHand, SizesFromInput, RotarySharedKeys, Multihead]


def made(kind):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), kind(), kind(), nn.LayerNorm(16), nn.Linear(16, 3)), torch.randn(2, 7, 5)


def prune(model, inputs, sparsity=0.5):
    pruner = Pruner(
        model, final_sparsity=sparsity, start=0, end=0, pattern="channel", distribution="uniform", example_inputs=inputs
    )
    pruner.step(0)
    return pruner


@torch.no_grad()
def run(model, inputs):
    return model.eval()(inputs)


@pytest.mark.parametrize("kind", WAYS)
def test_half_of_the_heads_go_and_the_outputs_stay(kind):
    model, inputs = made(kind)
    pruner = prune(model, inputs)
    heads = {group.name: group.pruned() for group in pruner._groups if group.name.endswith("(heads)")}
    each = 1 if kind is RotarySharedKeys else 2
    where = "attention" if kind is Multihead else "proj"
    assert heads == {f"1.{where} (heads)": each, f"2.{where} (heads)": each}
    shrunk = shrink(model, inputs)
    other = torch.randn(3, 7, 5)
    torch.testing.assert_close(run(shrunk.model, other), run(model, other), rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        halved = name.endswith(("q.weight", "k.weight", "v.weight", "proj.weight", "_proj_weight"))
        assert shrunk.model.get_parameter(name).numel() == parameter.numel() // (2 if halved else 1) or "bias" in name


def test_a_head_is_scored_by_the_mean_of_the_rows_that_make_it():
    model, inputs = made(SizesFromTensors)
    del model[2]
    with torch.no_grad():
        for layer in (model[1].q, model[1].k, model[1].v):
            layer.weight.view(4, 4, 16)[[0, 3]] *= 0.1
    pruner = prune(model, inputs)
    head = torch.tensor([False, True, True, False]).repeat_interleave(4)
    assert torch.equal(pruner.masks["1.proj.weight"], head.expand(16, 16))
    for layer in "qkv":
        assert torch.equal(pruner.masks[f"1.{layer}.weight"], head[:, None].expand(16, 16))


@pytest.mark.parametrize("kind", WAYS)
def test_a_shrunk_checkpoint_loads_into_a_fresh_module(kind, tmp_path):
    model, inputs = made(kind)
    prune(model, inputs)
    shrunk = shrink(model, inputs)
    torch.save((shrunk.shapes, shrunk.model.state_dict()), tmp_path / "small.pt")
    shapes, weights = torch.load(tmp_path / "small.pt", weights_only=True)
    fresh = apply_shapes(made(kind)[0], shapes)
    fresh.load_state_dict(weights)
    assert torch.equal(run(fresh, inputs), run(shrunk.model, inputs))
    assert list(weights) == list(model.state_dict())


def test_the_forward_computes_with_fewer_heads_where_its_sizes_can_be_set():
    small = []
    for kind in (SizesFromTensors, ByHand, SizesFromInput):
        model, inputs = made(kind)
        prune(model, inputs)
        small.append(shrink(model, inputs).model[1])
    assert [layer.heads for layer in small] == [2, 2, 4]
    assert small[1].all_head_size == 8
    assert type(small[0].q) is nn.Linear
    assert type(small[2].q) is GatheredRows
    assert type(small[2].proj) is GatheredColumns


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("weights", [False, True, "each"])
def test_attention_with_all_its_heads_in_the_new_form_is_multihead_attention(batch_first, weights):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=batch_first).eval()
    other = copy.deepcopy(attention)
    other.__class__, other.kept_heads = FewerHeads, (0, 1, 2, 3)
    x = torch.randn(3, 3, 16)
    settings = {
        "need_weights": bool(weights),
        "average_attn_weights": weights != "each",
        "attn_mask": torch.randn(12, 3, 3),
        "key_padding_mask": torch.tensor([[0.0, float("-inf"), 0.0]]).expand(3, 3),
    }
    for found, expected in zip(other(x, x, x, **settings), attention(x, x, x, **settings), strict=True):
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected)
    del settings["key_padding_mask"], settings["attn_mask"]
    one = other(x[0], x[0], x[0], **settings)
    torch.testing.assert_close(one[0], attention(x[0], x[0], x[0], **settings)[0])


class NormedQueries(SizesFromTensors):
    def split(self, x):
        q, k, v = super().split(x)
        return [F.layer_norm(q, q.shape[-1:]), k, v]


def test_heads_that_cannot_be_followed_are_left_whole_with_a_reason():
    model, inputs = made(NormedQueries)
    model.insert(1, nn.Linear(16, 16))
    pruner = prune(model, inputs)
    assert not any("heads" in group.name for group in pruner._groups)
    assert "changed between the linear layer and attention" in pruner.skipped["attention (heads)"]


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.fc = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 16)

    def forward(self, x):
        return self.attention(x, x, self.fc(x).relu())


def test_heads_whose_weights_the_model_returns_are_left_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 16), Weights())
    pruner = prune(model, torch.randn(2, 7, 5))
    assert "3.attention (heads)" in pruner.skipped


def test_training_goes_on_after_heads_are_gone_as_it_would_have_with_masks():
    from lightning_compress.pruning import carry_state

    model, inputs = made(RotarySharedKeys)
    pruner = prune(model, inputs)
    large = torch.optim.AdamW(model.parameters(), 1e-2)

    def step(network, optimizer):
        optimizer.zero_grad()
        network(inputs).square().mean().backward()
        optimizer.step()

    step(model, large)
    pruner.apply()
    shrunk = shrink(model, inputs)
    small = torch.optim.AdamW(shrunk.model.parameters(), 1e-2)
    small.load_state_dict(carry_state(large, model, shrunk))
    for _ in range(3):
        step(model, large)
        pruner.apply()
        step(shrunk.model, small)
    torch.testing.assert_close(shrunk.model(inputs), model(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [networks.VisionTransformer, networks.Gpt, networks.EncoderNet])
def test_heads_and_inner_channels_of_transformers_go(kind):
    torch.manual_seed(0)
    model = kind()
    inputs = {
        networks.VisionTransformer: torch.randn(2, 3, 8, 8),
        networks.Gpt: torch.randint(0, 24, (2, 8)),
        networks.EncoderNet: torch.randn(2, 7, 6),
    }[kind]
    pruner = prune(model, inputs)
    assert sum(group.pruned() for group in pruner._groups if group.name.endswith("(heads)")) == 2
    shrunk = shrink(model, inputs)
    torch.testing.assert_close(run(shrunk.model, inputs), run(model, inputs), rtol=1e-5, atol=1e-6)
    assert sum(p.numel() for p in shrunk.model.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())
