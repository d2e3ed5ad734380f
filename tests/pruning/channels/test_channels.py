"""Channel pruning: masks along dependency groups, and networks that really shrink."""

import copy
import functools

import lightning as L
import networks
import numpy as np
import onnx
import pytest
import torch
from pruning_networks import GPT, MobileNetLike, ResNet20, ResNeXt, UNet, ViT, make
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.export import to_onnx
from lightning_compress.export.onnx.session import open_session
from lightning_compress.pruning import Pruner, apply_shapes, carry_state, shrink

KINDS = [ResNet20, MobileNetLike, UNet, ViT, GPT, ResNeXt]


def prune(model, inputs, sparsity=0.5, **settings):
    pruner = Pruner(
        model, final_sparsity=sparsity, start=0, end=0, pattern="channel", example_inputs=inputs, **settings
    )
    pruner.step(0)
    return pruner


@torch.no_grad()
def evaluate(model, inputs):
    return model.eval()(inputs)


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_shrunk_model_gives_the_masked_models_outputs_with_fewer_weights(kind):
    model, inputs = make(kind)
    pruner = prune(model, inputs)
    shrunk = shrink(model, inputs)
    other = torch.randint(0, 20, (3, 5)) if kind is GPT else torch.randn(5, 3, 16, 16)
    assert relative(evaluate(shrunk.model, other), evaluate(model, other)) < 1e-5
    before = sum(p.numel() for p in model.parameters())
    after = sum(p.numel() for p in shrunk.model.parameters())
    assert after < (0.85 if kind in (ViT, GPT) else 0.5) * before
    assert sum(shrunk.removed.values()) == sum(group.pruned() for group in pruner._groups)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shrunk_checkpoint_loads_into_a_fresh_module(kind, tmp_path):
    model, inputs = make(kind)
    prune(model, inputs)
    shrunk = shrink(model, inputs)
    torch.save((shrunk.shapes, shrunk.model.state_dict()), tmp_path / "small.pt")
    shapes, weights = torch.load(tmp_path / "small.pt", weights_only=True)
    fresh = apply_shapes(make(kind, seed=1)[0], shapes)
    fresh.load_state_dict(weights)
    assert torch.equal(evaluate(fresh, inputs), evaluate(shrunk.model, inputs))
    assert repr(fresh) == repr(shrunk.model)


@pytest.mark.parametrize("kind", [*KINDS, networks.VisionTransformer])
def test_the_exported_shrunk_model_runs_in_onnx_runtime(kind, tmp_path):
    model, inputs = make(kind)
    inputs = torch.randn(2, 3, 8, 8) if kind is networks.VisionTransformer else inputs
    prune(model, inputs, distribution="uniform")
    file = to_onnx(shrink(model, inputs).model, inputs, tmp_path / "small.onnx")
    found = open_session(file.path).run(None, {file.input_names[0]: inputs.numpy()})[0]
    expected = evaluate(model, inputs).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    stored = {tensor.name: np.prod(tensor.dims) for tensor in onnx.load(file.path).graph.initializer}
    assert sum(stored.values()) < 0.8 * sum(p.numel() for p in model.parameters())


def test_the_model_itself_is_left_alone():
    model, inputs = make(ResNet20)
    model.train()
    model.fc.bias.requires_grad_(False)
    prune(model, inputs)
    before = copy.deepcopy(model.state_dict())
    shrunk = shrink(model, inputs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not model.fc.bias.requires_grad
    assert not shrunk.model.fc.bias.requires_grad
    assert list(shrunk.model.state_dict()) == list(before)


def test_finding_groups_changes_no_weight_statistic_or_random_state():
    model, inputs = make(MobileNetLike)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    Pruner(model, final_sparsity=0.5, start=0, end=1, pattern="channel", example_inputs=inputs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))


def test_channels_with_the_smallest_mean_weight_go_together_with_their_readers():
    model = mlp()
    scores = [model[i].weight.detach().abs().double().mean(dim=1).numpy() for i in (0, 2)]
    scores = [score / score.mean() for score in scores]
    order = np.argsort(np.concatenate(scores), kind="stable")[:10]
    kept = np.ones(20, bool)
    kept[order] = False
    pruner = prune(model, torch.randn(2, 6))
    first, second = kept[:12], kept[12:]
    np.testing.assert_array_equal(pruner.masks["0.weight"].numpy(), first[:, None].repeat(6, axis=1))
    np.testing.assert_array_equal(pruner.masks["2.weight"].numpy(), second[:, None] & first[None, :])
    np.testing.assert_array_equal(pruner.masks["4.weight"].numpy(), second[None, :].repeat(3, axis=0))


def test_uniform_takes_the_same_share_of_channels_from_each_group():
    model, inputs = make(ResNet20)
    pruner = prune(model, inputs, 0.25, distribution="uniform")
    assert {group.pruned() / group.units for group in pruner._groups} == {0.25}


def test_channels_go_gradually_with_nested_masks_and_exact_counts():
    model, inputs = make(UNet)
    pruner = Pruner(
        model, final_sparsity=0.6, start=0, end=6, pattern="channel", schedule="linear", example_inputs=inputs
    )
    total = sum(group.units for group in pruner._groups)
    before = None
    for step in range(7):
        pruner.step(step)
        assert sum(group.pruned() for group in pruner._groups) == round(0.1 * step * total)
        now = torch.cat([mask.flatten() for mask in pruner.masks.values()])
        assert before is None or not (now & ~before).any()
        before = now
        for name, parameter in pruner.parameters.items():
            assert not parameter.detach()[~pruner.masks[name]].any()


def test_channels_that_stay_are_rounded_to_the_nearest_multiple_with_nested_masks():
    model, inputs = make(functools.partial(ResNet20, width=16))
    settings = {"pattern": "channel", "distribution": "uniform", "schedule": "linear", "channel_multiple": 8}
    pruner = Pruner(model, final_sparsity=0.3, start=0, end=6, example_inputs=inputs, **settings)
    before = None
    for step in range(7):
        pruner.step(step)
        for group in pruner._groups:
            exact = group.units - round(0.05 * step * group.units)
            assert group.units - group.pruned() == (exact + 4) // 8 * 8
        now = torch.cat([mask.flatten() for mask in pruner.masks.values()])
        assert before is None or not (now & ~before).any()
        before = now
    assert {group.units: group.units - group.pruned() for group in pruner._groups} == {16: 8, 32: 24, 64: 48}


def test_a_multiple_does_not_cut_below_the_floor():
    model, inputs = make(functools.partial(ResNet20, width=16))
    pruner = prune(model, inputs, 0.3, distribution="uniform", channel_multiple=8, layer_floor=0.6)
    assert {group.units: group.units - group.pruned() for group in pruner._groups} == {16: 16, 32: 24, 64: 48}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "channel", "channel_multiple": 0}, "expected a whole number, at least 1"),
        ({"pattern": "2:4", "channel_multiple": 8}, "expected 1 with pattern '2:4'"),
    ],
)
def test_a_multiple_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(CompressionError, match=rf"Pruner\.channel_multiple: {message}"):
        Pruner(mlp(), final_sparsity=0.5, start=0, end=0, **settings)


def test_one_channel_of_each_group_always_stays():
    model = mlp()
    with torch.no_grad():
        model[0].weight[1:].mul_(1e-3)
    pruner = prune(model, torch.randn(2, 6), 0.85)
    assert min(group.units - group.pruned() for group in pruner._groups) >= 1


def test_ignored_layers_keep_their_channels_but_may_read_fewer():
    pruner = prune(mlp(), torch.randn(2, 6), ignore=["2", "4"])
    assert [group.name for group in pruner._groups] == ["0"]
    assert "not a target" in pruner.skipped["2"]
    assert int((~pruner.masks["2.weight"]).sum()) == 6 * 8


def test_a_group_may_have_its_own_sparsity():
    pruner = prune(mlp(), torch.randn(2, 6), 0.5, overrides={"0": {"final_sparsity": 0.25}})
    assert {group.name: group.pruned() for group in pruner._groups} == {"0": 3, "2": 4}


def test_groups_that_meet_a_layer_norm_or_attention_are_left_whole_with_a_reason():
    model, inputs = make(ViT)
    pruner = prune(model, inputs)
    inner, heads = {"blocks.0.fc1", "blocks.1.fc1"}, {"blocks.0.proj (heads)", "blocks.1.proj (heads)"}
    assert {group.name for group in pruner._groups} == inner | heads
    assert "blocks.0.qkv" in pruner.skipped
    assert any("layer or group norm" in reason for reason in pruner.skipped.values())


class Flattened(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.conv2, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(64, 2)

    def forward(self, x):
        return self.fc(self.conv2(self.conv(x).relu()).view(-1, 64))


def test_sizes_written_into_forward_are_found_before_training():
    pruner = prune(Flattened(), torch.randn(2, 3, 8, 8))
    assert [group.name for group in pruner._groups] == ["conv"]
    assert "does not run without one of its channels" in pruner.skipped["conv2"]


class Gated(nn.Module):
    """A layer makes values and gates, which meet channel by channel."""

    def __init__(self, out):
        super().__init__()
        self.proj, self.out = nn.Linear(4, 2 * out), nn.Linear(out, 4)

    def forward(self, x):
        values, gates = self.proj(x).chunk(2, -1)
        return self.out(torch.nn.functional.silu(values) * gates)


@pytest.mark.parametrize("width", [1, 2, 5, 6, 8])
def test_values_and_gates_of_one_layer_are_left_whole(width):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Gated(width))
    pruner = prune(net, torch.randn(2, 4))
    assert "2.proj" in pruner.skipped
    assert set(pruner.masks) == {"0.weight", "2.proj.weight"}
    assert pruner.masks["2.proj.weight"].any(1).all(), "columns alone are pruned"


def test_a_network_that_cannot_be_followed_is_refused_by_its_name():
    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.aside, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 2, 1), nn.Linear(4, 2)

        def forward(self, x):
            for _ in range(3):
                left, right = (self.first(x) if x.shape[1] == 3 else x).chunk(2, 1)
                x = torch.cat([left, self.aside(right)], 1)
                x = x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2)
            return self.fc(x.mean((2, 3)))

    with pytest.raises(CompressionError, match=r"Shuffled"):
        prune(Shuffled(), torch.randn(2, 3, 4, 4))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_channels_whose_weights_are_computed_are_left_whole(norm):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    pruner = prune(net, torch.randn(2, 4))
    assert pruner.skipped["0"] == pruner.skipped["2"] == "the weight of 2 is computed, as by weight_norm"
    assert set(pruner.masks) == {"4.weight", "5.weight"}


def test_of_grouped_convolutions_whole_groups_go_with_what_makes_and_reads_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.ReLU(), nn.Conv2d(12, 2, 1))
    with torch.no_grad():
        model[0].weight[4:6].mul_(0.1)
        model[1].weight[6:9].mul_(0.1)
    inputs = torch.randn(1, 3, 5, 5)
    pruner = prune(model, inputs, 0.25)
    first, second = torch.arange(8) // 2 == 2, torch.arange(12) // 3 == 2
    assert torch.equal(~pruner.masks["0.weight"][:, 0, 0, 0], first)
    assert torch.equal(~pruner.masks["1.weight"][:, 0, 0, 0], second)
    assert torch.equal(~pruner.masks["3.weight"][0, :, 0, 0], second)
    small = shrink(model, inputs).model
    assert repr(small[1]) == repr(nn.Conv2d(6, 9, 3, groups=3))
    assert relative(evaluate(small, inputs), evaluate(model, inputs)) < 1e-5


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([nn.Conv2d(3, 6, 1, groups=3), nn.Conv2d(6, 2, 1)], "whose input channels are not those of other layers"),
        ([nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1, groups=4), nn.Conv2d(4, 2, 1)], "one output channel a group"),
        (
            [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=4), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 2, 1)],
            "different numbers of groups",
        ),
    ],
)
def test_grouped_convolutions_that_cannot_lose_groups_are_left_whole_with_a_reason(layers, reason):
    pruner = prune(nn.Sequential(*layers, nn.Conv2d(2, 6, 1)), torch.randn(1, 3, 4, 4))
    assert [group.name for group in pruner._groups] == [str(len(layers) - 1)]
    assert any(reason in text for text in pruner.skipped.values())


def test_a_transposed_grouped_convolution_loses_groups():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 12, 2, 2, groups=4), nn.Conv2d(12, 2, 1))
    inputs = torch.randn(2, 3, 4, 4)
    prune(model, inputs, distribution="uniform")
    small = shrink(model, inputs).model
    assert repr(small[1]) == repr(nn.ConvTranspose2d(4, 6, 2, 2, groups=2))
    assert relative(evaluate(small, inputs), evaluate(model, inputs)) < 1e-5


def test_the_state_restores_channels():
    model, inputs = make(UNet)
    pruner = Pruner(model, final_sparsity=0.6, start=0, end=6, pattern="channel", example_inputs=inputs)
    pruner.step(3)
    other, _ = make(UNet)
    again = Pruner(other, final_sparsity=0.6, start=0, end=6, pattern="channel", example_inputs=inputs)
    again.load_state_dict(pruner.state_dict())
    assert all(torch.equal(mask, again.masks[name]) for name, mask in pruner.masks.items())
    assert [g.pruned() for g in again._groups] == [g.pruned() for g in pruner._groups]


def test_without_example_inputs_channels_are_refused():
    with pytest.raises(CompressionError, match=r"Pruner\.example_inputs: pattern='channel' has to run the model once"):
        Pruner(mlp(), final_sparsity=0.5, start=0, end=0, pattern="channel")


def test_masks_that_were_not_applied_are_noticed():
    model, inputs = make(ResNet20)
    pruner = prune(model, inputs)
    untouched, _ = make(ResNet20)
    with pytest.raises(CompressionError, match="Were the masks applied to the weights"):
        shrink(untouched, inputs, pruner.masks)


def test_shapes_of_another_model_are_refused():
    shapes = shrink(mlp(), torch.randn(1, 6)).shapes
    with pytest.raises(CompressionError, match="have different tensors"):
        apply_shapes(nn.Linear(2, 2), shapes)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)])
def test_training_goes_on_after_shrinking_as_it_would_have_with_masks(optimizer):
    model = mlp()
    inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    pruner = prune(model, inputs)
    large = optimizer(model.parameters())

    def step(network, opt):
        opt.zero_grad()
        network(inputs).square().mean().backward()
        opt.step()

    for _ in range(3):
        step(model, large)
        pruner.apply()
    shrunk = shrink(model, inputs)
    small = optimizer(shrunk.model.parameters())
    small.load_state_dict(carry_state(large, model, shrunk))
    for _ in range(3):
        step(model, large)
        pruner.apply()
        step(shrunk.model, small)
    torch.testing.assert_close(shrunk.model(inputs), model(inputs), rtol=1e-5, atol=1e-6)


def test_channels_are_pruned_by_the_callback(tmp_path):
    from lightning_compress.callbacks.pruning import GradualMagnitudePruning

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.example_input_array = make(ResNet20)

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return self(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    module = Module()
    callback = GradualMagnitudePruning(final_sparsity=0.5, start=1, end=4, every=1, pattern="channel")
    L.Trainer(
        max_steps=6,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[callback],
        default_root_dir=tmp_path,
    ).fit(module, torch.utils.data.DataLoader(torch.randn(12, 3, 16, 16), batch_size=2))
    shrunk = shrink(module, module.example_input_array)
    inputs = torch.randn(3, 3, 16, 16)
    assert relative(evaluate(shrunk.model, inputs), evaluate(module, inputs)) < 1e-5
    assert sum(p.numel() for p in shrunk.model.parameters()) < 0.5 * sum(p.numel() for p in module.parameters())
