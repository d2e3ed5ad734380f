"""The pruner in a plain loop, against NumPy."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.pruning import Pruner

CURVES = {
    "cubic": lambda t: 1 - (1 - t) ** 3,
    "linear": lambda t: t,
    "cosine": lambda t: 0.5 - 0.5 * math.cos(math.pi * t),
    "exponential": lambda t: (1 - math.exp(-5 * t)) / (1 - math.exp(-5)),
    "constant": lambda t: 1.0,
}


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))


def weights(model):
    return [model[0].weight, model[4].weight]


def flat(tensors):
    return np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors])


def zeros(tensors):
    return int((flat(tensors) == 0).sum())


def train(model, pruner, steps, momentum=0.9):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    torch.manual_seed(1)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 4, 4)).square().mean().backward()
        optimizer.step()
        pruner.step(step)
        yield step


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
def test_global_magnitude_prunes_the_smallest_weights_of_all_layers(sparsity):
    model = net()
    values = np.abs(flat(weights(model)))
    count = round(sparsity * values.size)
    expected = np.ones(values.size, dtype=bool)
    expected[np.argsort(values, kind="stable")[:count]] = False
    pruner = Pruner(model, final_sparsity=sparsity, start=0, end=0, distribution="global")
    pruner.step(0)
    np.testing.assert_array_equal(flat(pruner.masks.values()), expected)
    np.testing.assert_array_equal(flat(weights(model)) != 0, expected)


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_uniform_prunes_the_same_share_of_each_layer(sparsity):
    model = net()
    pruner = Pruner(model, final_sparsity=sparsity, start=0, end=0, distribution="uniform")
    pruner.step(0)
    for weight in weights(model):
        assert zeros([weight]) == round(sparsity * weight.numel())
    assert pruner.layer_sparsity_target() == {"0.weight": sparsity, "4.weight": sparsity}


@pytest.mark.parametrize("schedule", CURVES)
def test_sparsity_follows_the_schedule_exactly(schedule):
    model = net()
    pruner = Pruner(model, final_sparsity=0.8, initial_sparsity=0.2, start=3, end=17, every=4, schedule=schedule)
    n = sum(weight.numel() for weight in weights(model))
    for step in train(model, pruner, 20):
        updates = [u for u in (3, 7, 11, 15, 17) if u <= step]
        asked = 0.2 + 0.6 * CURVES[schedule]((updates[-1] - 3) / 14) if updates else 0.0
        assert zeros(weights(model)) == round(asked * n), step


def test_a_callable_schedule_is_followed():
    pruner = Pruner(net(), final_sparsity=0.8, start=0, end=10, schedule=lambda t: t**2)
    pruner.step(5)
    assert pruner.sparsity() == pytest.approx(0.2, abs=1e-3)


def test_fractions_and_epochs_resolve_to_steps():
    pruner = Pruner(
        net(), final_sparsity=0.5, start=0.1, end="3ep", every="0.05dur", total_steps=200, steps_per_epoch=40
    )
    schedule = pruner.schedule
    assert (schedule.start, schedule.end, schedule.every) == (20, 120, 10)


def test_pruned_weights_stay_pruned_while_sparsity_rises():
    model = net()
    pruner = Pruner(model, final_sparsity=0.9, start=0, end=10, every=1)
    before = np.ones(536, dtype=bool)
    for _ in train(model, pruner, 12):
        now = flat(pruner.masks.values())
        assert not (now & ~before).any()
        np.testing.assert_array_equal(flat(weights(model)) != 0, now)
        before = now
    assert pruner.sparsity() == pytest.approx(0.9, abs=1 / 536)


def test_a_weight_that_is_zero_by_chance_does_not_displace_a_pruned_one():
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 2.0, 4.0, 1.0]]))
    pruner = Pruner(model, final_sparsity=0.25, start=0, end=10, every=5, schedule="constant")
    pruner.step(1)
    with torch.no_grad():
        model.weight[0, 0] = 0.0
    pruner.step(10)
    assert pruner.masks["weight"].tolist() == [[True, True, True, False]]


def test_a_second_update_at_the_same_step_changes_nothing():
    model = net()
    pruner = Pruner(model, final_sparsity=0.9, start=0, end=10)
    assert pruner.step(5)
    masks = {name: mask.clone() for name, mask in pruner.masks.items()}
    with torch.no_grad():
        for weight in weights(model):
            weight.mul_(torch.rand_like(weight))
    assert not pruner.step(5)
    assert all(torch.equal(mask, pruner.masks[name]) for name, mask in masks.items())


def test_an_update_between_two_calls_is_made_up_for():
    jumping, walking = net(), net()
    a = Pruner(jumping, final_sparsity=0.9, start=0, end=10, every=3)
    b = Pruner(walking, final_sparsity=0.9, start=0, end=10, every=3)
    assert a.step(8)
    for step in range(9):
        b.step(step)
    assert a.sparsity() == b.sparsity()
    assert a.last_update == b.last_update == 6


def test_nothing_is_pruned_before_the_start():
    model = net()
    pruner = Pruner(model, final_sparsity=0.9, start=5, end=10, initial_sparsity=0.5)
    assert not pruner.step(4)
    assert pruner.sparsity() == 0
    assert pruner.step(5)
    assert pruner.sparsity() == 0.5


def test_apply_zeroes_pruned_weights_and_nothing_else():
    model = net()
    pruner = Pruner(model, final_sparsity=0.5, start=0, end=0)
    pruner.step(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(2.0)
    pruner.apply()
    for name, parameter in model.named_parameters():
        expected = 2.0 * pruner.masks.get(name, torch.ones_like(parameter))
        assert torch.equal(parameter, expected)


def test_the_model_keeps_its_parameters_keys_and_hooks():
    model = net()
    keys, parameters = list(model.state_dict()), list(model.parameters())
    pruner = Pruner(model, final_sparsity=0.5, start=0, end=0)
    pruner.step(0)
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_biases_norms_and_embeddings_are_left_alone_unless_named():
    model = nn.ModuleDict({"e": nn.Embedding(5, 4), "n": nn.LayerNorm(4), "l": nn.Linear(4, 4)})
    assert list(Pruner(model, final_sparsity=0.5, start=0, end=0).masks) == ["l.weight"]
    named = Pruner(model, final_sparsity=0.5, start=0, end=0, targets=["Embedding", "n.weight", "l.bias"])
    assert list(named.masks) == ["e.weight", "n.weight", "l.bias"]
    assert list(Pruner(model, final_sparsity=0.5, start=0, end=0, targets=["Linear"]).masks) == ["l.weight"]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_biases_of_attention_and_magnitudes_of_weight_norm_are_not_pruned_by_default():
    model = nn.ModuleDict(
        {"a": nn.MultiheadAttention(4, 2, add_bias_kv=True), "n": nn.utils.weight_norm(nn.Linear(4, 4))}
    )
    pruner = Pruner(model, final_sparsity=0.5, start=0, end=10)
    assert set(pruner.masks) == {"a.in_proj_weight", "a.out_proj.weight", "n.weight_v"}
    assert set(Pruner(model, final_sparsity=0.5, start=0, end=10, targets=["a.bias_k"]).masks) == {"a.bias_k"}


def test_a_matrix_of_a_layer_s_own_is_pruned_whatever_its_name():
    layer = nn.Linear(4, 4)
    layer.lora_g = nn.Parameter(torch.randn(4, 4))
    assert set(Pruner(nn.Sequential(layer), final_sparsity=0.5, start=0, end=10).masks) == {"0.weight", "0.lora_g"}


def test_recurrent_and_attention_weights_are_pruned_by_default():
    model = nn.ModuleDict({"r": nn.GRU(4, 4), "a": nn.MultiheadAttention(4, 2)})
    assert list(Pruner(model, final_sparsity=0.5, start=0, end=0).masks) == [
        "r.weight_ih_l0",
        "r.weight_hh_l0",
        "a.in_proj_weight",
        "a.out_proj.weight",
    ]


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    pruner = Pruner(model, final_sparsity=0.5, start=0, end=0, ignore=[])
    assert list(pruner.masks) == ["0.weight"]
    pruner.step(0)
    assert zeros([model[1].weight]) == 8


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:2x3"])
def test_the_memory_layout_of_weights_makes_no_difference(pattern):
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 8, 3)
    other = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    masks = []
    for model in (plain, other):
        pruner = Pruner(model, final_sparsity=0.5, start=0, end=0, pattern=pattern)
        pruner.step(0)
        masks.append(pruner.masks["weight"])
    assert torch.equal(*masks)
    assert torch.equal(plain.weight, other.weight)
    assert other.weight.is_contiguous(memory_format=torch.channels_last)


def test_nan_weights_are_refused_by_name():
    model = net()
    with torch.no_grad():
        model[4].weight[0, 0] = float("nan")
    with pytest.raises(CompressionError, match=r"4\.weight: 1 of 320 scores are NaN"):
        Pruner(model, final_sparsity=0.5, start=0, end=0).step(0)


def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path):
    def steps(model, pruner, numbers):
        for step in numbers:
            torch.manual_seed(step)
            loss = model(torch.randn(4, 3, 4, 4)).square().mean()
            for parameter, gradient in zip(
                model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
            ):
                parameter.data -= 0.1 * gradient
            pruner.step(step)

    straight = net()
    steps(straight, Pruner(straight, final_sparsity=0.9, start=0, end=10, every=2), range(1, 13))

    first = net()
    pruner = Pruner(first, final_sparsity=0.9, start=0, end=10, every=2)
    steps(first, pruner, range(1, 6))
    torch.save((first.state_dict(), pruner.state_dict()), tmp_path / "state.pt")
    loaded, state = torch.load(tmp_path / "state.pt", weights_only=True)
    second = net(seed=7)
    pruner = Pruner(second, final_sparsity=0.9, start=0, end=10, every=2)
    second.load_state_dict(loaded)
    pruner.load_state_dict(state)
    steps(second, pruner, range(6, 13))

    for name, value in straight.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_a_saved_mask_takes_one_bit_a_weight():
    saved = Pruner(net(), final_sparsity=0.9, start=0, end=10).state_dict()["masks"]
    assert sum(mask["bits"].numel() for mask in saved.values()) == (216 + 320) // 8


def test_a_state_of_other_settings_is_refused_with_every_difference():
    state = Pruner(net(), final_sparsity=0.9, start=0, end=10).state_dict()
    other = Pruner(net(), final_sparsity=0.8, start=0, end=20, schedule="linear")
    with pytest.raises(
        CompressionError,
        match=r"end was 10, now 20; final_sparsity was 0\.9, now 0\.8; schedule was 'cubic', now 'linear'",
    ):
        other.load_state_dict(state)


def test_a_state_of_another_model_is_refused():
    state = Pruner(nn.Linear(4, 4), final_sparsity=0.9, start=0, end=10).state_dict()
    with pytest.raises(CompressionError, match=r"Only there: \['weight'\]"):
        Pruner(net(), final_sparsity=0.9, start=0, end=10).load_state_dict(state)
    with pytest.raises(CompressionError, match="has shape"):
        Pruner(nn.Linear(4, 5), final_sparsity=0.9, start=0, end=10).load_state_dict(state)
    with pytest.raises(CompressionError, match="expected the state of a pruner"):
        Pruner(net(), final_sparsity=0.9, start=0, end=10).load_state_dict({})


def test_a_pruner_copies_and_pickles_together_with_its_model():
    model = net()
    pruner = Pruner(model, final_sparsity=0.5, start=0, end=10)
    pruner.step(5)
    for model2, pruner2 in (copy.deepcopy((model, pruner)), pickle.loads(pickle.dumps((model, pruner)))):
        assert pruner2.parameters["0.weight"] is model2[0].weight
        pruner2.step(10)
        assert pruner2.sparsity() == 0.5
    assert pruner.sparsity() < 0.5


@pytest.mark.filterwarnings("ignore:.*every weight of")
@settings(max_examples=40)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
    sparsity=st.floats(0, 0.999),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    distribution=st.sampled_from(["global", "uniform"]),
    seed=st.integers(0, 1000),
)
def test_the_count_is_exact_for_any_shapes_sparsity_and_dtype(shapes, sparsity, dtype, distribution, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(*[nn.Linear(i, o, bias=False) for o, i in shapes]).to(dtype)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(weight.sign())  # no accidental zeros in narrow types
    pruner = Pruner(model, final_sparsity=sparsity, start=0, end=0, distribution=distribution)
    pruner.step(0)
    counts = [mask.numel() - int(mask.sum()) for mask in pruner.masks.values()]
    sizes = [o * i for o, i in shapes]
    if distribution == "global":
        assert sum(counts) == round(sparsity * sum(sizes))
    else:
        assert counts == [round(sparsity * size) for size in sizes]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("final_sparsity", 1.0, r"Demo\.final_sparsity: expected a share in \[0, 1\), got 1\.0"),
        ("final_sparsity", 90, r"Demo\.final_sparsity: .* Write 0\.9 for 90 percent"),
        ("final_sparsity", None, r"Demo\.final_sparsity"),
        ("initial_sparsity", 0.95, r"Demo\.initial_sparsity: expected at most final_sparsity"),
        ("end", 3, r"Demo\.end: expected not before start"),
        ("end", 200, r"Demo\.end: expected at most the run's 100 optimizer steps"),
        ("every", 0, r"Demo\.every: expected more than zero"),
        ("start", -1, r"Demo\.start"),
        ("schedule", "cubik", r"Demo\.schedule: .*Closest: cubic"),
        ("distribution", "globl", r"Demo\.distribution: .*Closest: global"),
        ("pattern", "4:2", r"Demo\.pattern: expected n:m with 0 < n < m"),
        ("criterion", "magnitud", r"Demo\.criterion: .*Closest: magnitude"),
        ("regrow", "grad", r"Demo\.regrow: "),
        ("layer_floor", 1.5, r"Demo\.layer_floor"),
        ("drop_fraction", -0.1, r"Demo\.drop_fraction"),
        ("targets", "Linear", r"Demo\.targets: expected a list"),
        ("targets", ["Linera"], r"Demo\.targets: .*Closest: Linear"),
        ("ignore", ["re:("], r"Demo\.ignore: expected a valid regular expression"),
        ("overrides", {"0": {"sparsity": 0.5}}, r"Demo\.overrides\['0'\]: expected one of final_sparsity"),
        ("overrides", {"0": {"final_sparsity": 2}}, r"Demo\.overrides\['0'\]\.final_sparsity"),
        ("overrides", {"nope": None}, r"Demo\.overrides: expected a pattern that matches"),
        ("seed", 1.5, r"Demo\.seed"),
    ],
)
def test_bad_settings_are_refused_at_construction_with_their_full_name(setting, value, message):
    asked = {"final_sparsity": 0.9, "start": 5, "end": 50, "total_steps": 100, "field": "Demo"}
    with pytest.raises(CompressionError, match=message):
        Pruner(net(), **{**asked, setting: value})


def test_a_fraction_without_a_known_length_is_refused():
    with pytest.raises(CompressionError, match=r"Pruner\.end: expected a point in time that this run can place"):
        Pruner(net(), final_sparsity=0.5, start=0, end=1.0)


def test_a_model_without_anything_to_prune_is_refused():
    with pytest.raises(CompressionError, match="nothing is left to prune"):
        Pruner(nn.LayerNorm(4), final_sparsity=0.5, start=0, end=0)


def test_a_lazy_layer_without_shape_is_refused():
    with pytest.raises(CompressionError, match="a lazy layer whose weights have no shape yet"):
        Pruner(nn.LazyLinear(4), final_sparsity=0.5, start=0, end=0)


def test_a_layer_that_loses_every_weight_is_warned_about():
    model = net()
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    with pytest.warns(UserWarning, match=r"every weight of 0\.weight is pruned now"):
        Pruner(model, final_sparsity=0.8, start=0, end=0, layer_floor=0).step(0)


def test_dead_channels_are_counted_by_layer():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 1))
    with torch.no_grad():
        model[0].weight[[1, 3]] = 0
        model[2].weight[5] = 0
        model[2].weight[:3, 0] = 0
    pruner = Pruner(model, freeze=True)
    pruner.step(0)
    assert pruner.dead_channels() == {"0.weight": 2, "2.weight": 1}
