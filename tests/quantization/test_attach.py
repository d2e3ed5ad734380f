"""Attaching quantization to a live model and taking it off again."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from networks import EncoderNet, Mlp, ResidualNet
from torch import nn

from lightning_compress import CompressionError
from lightning_compress.quantization import attach, find, prepare, strip

IMAGE = (4, 3, 8, 8)


def quantized(model: nn.Module, *shape: int, steps: int = 3, **settings: object) -> nn.Module:
    prepare(model, example_inputs=torch.randn(*shape), **settings)
    model.train()
    for _ in range(steps):
        model(torch.randn(*shape))
    return model.eval()


def grid_of(weight: torch.Tensor, bits: int) -> np.ndarray:
    """The weight on its per-channel grid, by NumPy."""
    values = weight.detach().numpy()
    qmax = 2 ** (bits - 1) - 1
    largest = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True)
    scale = largest / np.float32(qmax)
    return np.clip(np.round(values / scale), -qmax, qmax) * scale


def test_state_dict_keys_and_parameters_stay() -> None:
    model = ResidualNet()
    keys = list(model.state_dict())
    parameters = dict(model.named_parameters())
    quantized(model, *IMAGE)
    assert list(model.state_dict()) == keys
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert type(model) is ResidualNet


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_layer_computes_with_the_weight_on_its_grid(bits: int) -> None:
    layer = nn.Linear(6, 4, bias=False)
    prepare(layer, weight_bits=bits, activation_bits=None)
    expected = grid_of(layer.weight, bits)
    np.testing.assert_allclose(layer(torch.eye(6)).T.detach().numpy(), expected, rtol=1e-6, atol=1e-7)


def test_the_parameter_itself_stays_float_and_learns() -> None:
    layer = nn.Linear(6, 4, bias=False)
    before = layer.weight.detach().clone()
    prepare(layer, weight_bits=4, activation_bits=None)
    layer(torch.randn(3, 6)).sum().backward()
    assert torch.equal(layer.weight, before)
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() > 0


def test_zero_is_exact_in_weights_and_activations() -> None:
    model = quantized(Mlp(), 4, 12)
    with torch.no_grad():
        model[1].weight[:, ::2] = 0
    quantization = find(model)
    assert quantization is not None
    assert (quantization.layers["1.weight"].integers()[:, ::2] == 0).all()
    for quantizer in quantization.activations.values():
        zero_point = float(quantizer.zero_point)
        assert zero_point == round(zero_point)
        assert quantizer.qmin <= zero_point <= quantizer.qmax
        assert float(quantizer(torch.zeros(1))) == 0.0


def test_strip_gives_the_float_model_back_without_a_trace() -> None:
    model = ResidualNet().eval()
    x = torch.randn(*IMAGE)
    expected = model(x)
    prepare(model, example_inputs=x)
    assert not torch.equal(model(x), expected)
    strip(model)
    assert torch.equal(model(x), expected)
    assert find(model) is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_ranges_follow_a_moving_average_of_training_batches() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    prepare(model, example_inputs=torch.randn(1, 3), momentum=0.25)
    model.train()
    batches = [torch.randn(5, 3) for _ in range(4)]
    low, high = float(batches[0].min()), float(batches[0].max())
    for index, batch in enumerate(batches):
        model(batch)
        if index:
            low += 0.25 * (float(batch.min()) - low)
            high += 0.25 * (float(batch.max()) - high)
    (quantizer,) = find(model).activations.values()
    torch.testing.assert_close(quantizer.range, torch.tensor([low, high]))
    low, high = min(low, 0.0), max(high, 0.0)
    torch.testing.assert_close(quantizer.scale, torch.tensor((high - low) / 255))


def test_ranges_do_not_learn_from_evaluation() -> None:
    model = quantized(Mlp(), 4, 12)
    before = {name: q.range.clone() for name, q in find(model).activations.items()}
    model(torch.randn(4, 12) * 100)
    assert all(torch.equal(q.range, before[name]) for name, q in find(model).activations.items())


def test_frozen_ranges_do_not_move() -> None:
    model = quantized(Mlp(), 4, 12).train()
    find(model).frozen = True
    before = {name: q.range.clone() for name, q in find(model).activations.items()}
    model(torch.randn(4, 12) * 100)
    assert all(torch.equal(q.range, before[name]) for name, q in find(model).activations.items())


def test_a_first_batch_under_inference_mode_does_not_poison_training() -> None:
    model = Mlp()
    prepare(model, example_inputs=torch.randn(1, 12))
    with torch.inference_mode():
        model.eval()(torch.randn(4, 12))
    model.train()(torch.randn(4, 12)).sum().backward()
    assert model[1].weight.grad is not None


def test_disabled_quantization_is_the_float_model() -> None:
    model = ResidualNet().eval()
    x = torch.randn(*IMAGE)
    expected = model(x)
    quantized(model, *IMAGE, steps=0)
    find(model).enabled = False
    assert torch.equal(model(x), expected)


def test_attention_weights_are_quantized_although_their_module_is_never_called() -> None:
    model = EncoderNet().eval()
    quantized(model, 2, 7, 6)
    quantization = find(model)
    name = "encoder.layers.0.self_attn.out_proj.weight"
    assert name in quantization.layers
    x = torch.randn(2, 7, 6)
    expected = model(x)
    with torch.no_grad():
        # A change below half a step must not be seen; one is enough to move the float result.
        weight = model.encoder.layers[0].self_attn.out_proj.weight
        weight.copy_(quantization.layers[name].fake_quantize())
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


class Masked(nn.Module):
    """An encoder that may not look at later steps, or not at the last two; both masks are floats with -inf."""

    def __init__(self, mask: str) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.causal = mask == "causal"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = x.shape[1]
        if self.causal:
            return self.encoder(x, mask=nn.Transformer.generate_square_subsequent_mask(steps))
        padding = torch.zeros(x.shape[:2]).masked_fill(torch.arange(steps) >= steps - 2, -torch.inf)
        return self.encoder(x, src_key_padding_mask=padding)


@pytest.mark.parametrize("method", ["minmax", "mse", "learned"])
@pytest.mark.parametrize("mask", ["causal", "padding"])
def test_masks_of_attention_keep_out_what_they_mask(mask: str, method: str) -> None:
    model = quantized(Masked(mask), 4, 6, 16, range=method)
    assert not [name for name in find(model).activations if "mask" in name]
    x = torch.randn(4, 6, 16)
    other = torch.cat([x[:, :4], torch.randn(4, 2, 16)], 1)
    assert torch.equal(model(x)[:, :4], model(other)[:, :4])


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "learned"])
def test_a_batch_without_examples_passes_and_leaves_the_ranges_alone(method: str) -> None:
    model = Mlp()
    prepare(model, example_inputs=torch.randn(2, 12), range=method).train()
    model(torch.empty(0, 12))
    assert not any(quantizer.observed for quantizer in find(model).activations.values())
    model(torch.randn(4, 12))
    states = {name: q.state_dict() for name, q in find(model).activations.items()}
    y = model(torch.empty(0, 12))
    assert y.shape == (0, 5)
    y.sum().backward()
    assert all(not parameter.grad.any() for parameter in (*model.parameters(), *find(model).parameters()))
    for name, quantizer in find(model).activations.items():
        assert str(quantizer.state_dict()) == str(states[name])


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "learned"])
def test_what_was_never_finite_is_not_rounded(method: str) -> None:
    layer = nn.Linear(6, 4, bias=False)
    prepare(layer, example_inputs=torch.randn(2, 6), range=method)
    x = torch.randn(8, 6)
    x[0, 0] = -torch.inf
    (quantizer,) = find(layer).activations.values()
    assert torch.equal(quantizer(x), x)
    assert not quantizer.observed
    quantizer(x[1:])
    assert quantizer.observed


def test_an_encoder_takes_padded_batches_in_evaluation_as_in_training() -> None:
    def encoder() -> nn.TransformerEncoder:
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        return nn.TransformerEncoder(layer, 2)

    x, padding = torch.randn(4, 6, 16), torch.arange(6).expand(4, 6) >= 4
    inputs = (x, None, padding)
    model = prepare(encoder(), example_inputs=inputs)
    model.train()(*inputs)
    find(model).frozen = True
    expected = model(*inputs)
    for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            actual = copied.eval()(*inputs)
            torch.testing.assert_close(actual[~padding], expected[~padding], atol=0.05, rtol=0)
            # A float encoder packs its batches as ever.
            assert strip(copied).use_nested_tensor
            reference = encoder().eval()
            reference.load_state_dict(copied.state_dict())
            assert torch.equal(copied(x, src_key_padding_mask=padding), reference(x, src_key_padding_mask=padding))


def test_copies_and_pickles_carry_their_own_quantizers() -> None:
    model = quantized(ResidualNet(), *IMAGE)
    x = torch.randn(*IMAGE)
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(duplicate(x), model(x))
        assert find(duplicate) is not find(model)
        strip(duplicate)
        assert find(model) is not None
        assert not torch.equal(duplicate(x), model(x))


def test_state_restores_ranges_and_placement_without_recording_again() -> None:
    model = quantized(ResidualNet(), *IMAGE)
    state = find(model).state_dict()
    fresh = ResidualNet().eval()
    fresh.load_state_dict(model.state_dict())
    attach(fresh, state)
    x = torch.randn(*IMAGE)
    assert torch.equal(fresh(x), model(x))


def test_overrides_change_one_layer_and_null_leaves_it_float() -> None:
    model = quantized(Mlp(), 4, 12, overrides={"1": {"weight_bits": 4, "activation_bits": 6}, "5": None})
    quantization = find(model)
    assert quantization.layers["1.weight"].spec.bits == 4
    assert quantization.layers["3.weight"].spec.bits == 8
    assert "5.weight" not in quantization.layers
    assert quantization.activations[quantization.layer_input["1.weight"]].bits == 6


@pytest.mark.parametrize("name", ["alias", "1.weight", "1", r"re:1\..*"])
def test_a_weight_goes_by_the_first_of_its_names_and_answers_to_each(name: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model.alias = model[1].weight
    quantized(model, 8, 4, overrides={name: {"weight_bits": 2}}, first_last_bits=None)
    found = find(model)
    assert {weight: layer.spec.bits for weight, layer in found.layers.items()} == {"0.weight": 8, "alias": 2}
    assert set(found.layer_input) == {"0.weight", "alias"}
    np.testing.assert_allclose(found.layers["alias"].fake_quantize().detach(), grid_of(model.alias, 2), rtol=1e-6)


def test_grouped_scales_follow_their_groups() -> None:
    layer = nn.Linear(8, 2, bias=False)
    prepare(layer, weight_bits=4, activation_bits=None, weight_granularity="group:4")
    groups = layer.weight.detach().reshape(2, 2, 4)
    scale = groups.abs().amax(-1, keepdim=True) / 7
    expected = (torch.round(groups / scale) * scale).reshape(2, 8)
    torch.testing.assert_close(layer(torch.eye(8)).T, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_bits": 1}, r"prepare\.weight_bits: expected an integer from 2 to 8"),
        ({"activation_bits": 16}, r"prepare\.activation_bits: expected an integer from 2 to 8"),
        ({"weight_bits": True}, r"prepare\.weight_bits"),
        ({"weight_bits": None, "activation_bits": None}, r"nothing is quantized"),
        ({"weight_granularity": "row"}, r"prepare\.weight_granularity: expected 'channel'"),
        ({"range": "minmx"}, r"prepare\.range: .*Closest: minmax"),
        ({"backend": "onnx"}, r"prepare\.backend: .*Closest: onnxruntime"),
        ({"targets": ["lin"]}, r"prepare\.targets: expected a pattern that matches a layer"),
        ({"targets": "Linear"}, r"prepare\.targets: expected a list of patterns"),
        ({"overrides": {"1": {"bits": 4}}}, r"overrides\['1'\]: expected settings among"),
        ({"momentum": 0}, r"prepare\.momentum: expected a number in"),
        ({"example_inputs": None}, r"prepare\.example_inputs: expected inputs for one forward"),
    ],
)
def test_bad_settings_are_refused_with_the_field_and_a_remedy(settings: dict, message: str) -> None:
    model = Mlp()
    with pytest.raises(CompressionError, match=message):
        prepare(model, **{"example_inputs": torch.randn(1, 12), **settings})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_preparing_twice_is_refused() -> None:
    model = quantized(Mlp(), 4, 12)
    with pytest.raises(CompressionError, match="quantized already: strip"):
        prepare(model, example_inputs=torch.randn(1, 12))


def test_a_prepared_model_compiles_without_a_graph_break_and_to_the_same_numbers() -> None:
    model = quantized(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5)), 4, 12).train()
    duplicate = copy.deepcopy(model)
    compiled = torch.compile(duplicate, fullgraph=True, backend="eager")
    x = torch.randn(4, 12)
    results = [module(x) for module in (model, compiled)]
    assert torch.equal(*results)
    for result in results:
        result.sum().backward()
    for parameter, other in zip(model.parameters(), duplicate.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad)
    for name, quantizer in find(model).activations.items():
        assert torch.equal(quantizer.range, find(duplicate).activations[name].range)


@pytest.mark.parametrize("method", ["minmax", "learned"])
def test_a_compiled_model_takes_a_batch_without_examples(method: str) -> None:
    model = quantized(Mlp(), 4, 12, range=method).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for size in (4, 0, 3):
        assert compiled(torch.randn(size, 12)).shape == (size, 5)


def test_a_size_that_depends_on_data_compiles_without_a_graph_break() -> None:
    class Chosen(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x[x[:, 0] > 0])

    model = quantized(Chosen(), 16, 12).train()
    duplicate = copy.deepcopy(model)
    x = torch.randn(16, 12)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        assert torch.equal(torch.compile(duplicate, fullgraph=True, backend="eager")(x), model(x))


def test_a_head_that_is_replaced_later_is_noticed() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    quantization = find(prepare(net, example_inputs=torch.randn(2, 4)))
    quantization.weights.refuse_replaced()
    net[2] = nn.Linear(8, 3)
    with pytest.raises(CompressionError, match=r"the module of 2\.weight was replaced"):
        quantization.weights.refuse_replaced()
