from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from kernel_modes import MODES, assert_same_bits
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.fake_quantize import cpu as native
from lightning_compress.quantization.fake_quantize import functional as kernels
from lightning_compress.quantization.fake_quantize.integers import quantize_integers, quantize_weight_integers
from lightning_compress.quantization.fake_quantize.scale_shapes import spread_scale
from lightning_compress.quantization.ranges import observers

AFFINE = (torch.tensor(0.05), torch.tensor(100.0), 0, 255)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=MODES, ids=lambda mode: "compiled" if mode else "eager")
def mode(request: pytest.FixtureRequest) -> Iterator[bool]:
    native.use_compiled(request.param)
    yield request.param
    native.use_compiled("auto")


def in_both_modes(function):
    results = []
    for mode in MODES:
        native.use_compiled(mode)
        results.append(function())
    native.use_compiled("auto")
    return results[0], results[-1]


def reference(x: np.ndarray, scale: float, zero_point: int, qmin: int, qmax: int) -> tuple[np.ndarray, np.ndarray]:
    """Value and gradient mask in float32 NumPy."""
    with np.errstate(all="ignore"):
        q = np.rint(x / np.float32(scale)) + np.float32(zero_point)
        y = (np.clip(q, qmin, qmax) - np.float32(zero_point)) * np.float32(scale)
        return y, (q >= qmin) & (q <= qmax)


def any_floats(count: int) -> torch.Tensor:
    """Every kind of float32: random bit patterns, ties, ends of the range, NaN and infinities."""
    bits = torch.randint(-(2**31), 2**31 - 1, (count,), dtype=torch.int64).to(torch.int32).view(torch.float32)
    ties = (torch.arange(-600, 600) / 2 * 0.05).float()
    plain = torch.randn(count) * 4
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, -math.nan, 3.4e38, -3.4e38, 1e-45])
    return torch.cat([bits, ties, plain, special])


def with_gradient(function, x: torch.Tensor, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = function(x)
    y.backward(grad.to(y.dtype))
    assert x.grad is not None
    return y.detach(), x.grad


def test_values_and_gradients_are_those_of_numpy(mode: bool) -> None:
    x = any_floats(3000)
    y, grad = with_gradient(lambda t: kernels.fake_quantize(t, *AFFINE), x, torch.arange(1.0, x.numel() + 1))
    expected, inside = reference(x.numpy(), 0.05, 100, 0, 255)
    np.testing.assert_array_equal(y.numpy(), expected)
    np.testing.assert_array_equal(grad.numpy(), np.where(inside, np.arange(1.0, x.numel() + 1), 0))


def test_ties_go_to_the_even_integer(mode: bool) -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    y = kernels.fake_quantize(x, torch.tensor(1.0), torch.tensor(8.0), 0, 15)
    assert y.tolist() == [0.0, 2.0, 2.0, 0.0, -2.0]


def test_division_is_not_a_multiplication_by_the_reciprocal(mode: bool) -> None:
    scale = np.float32(0.47)
    x = (np.arange(2000, dtype=np.float32) + np.float32(0.5)) * scale
    assert (np.rint(x * (np.float32(1) / scale)) != np.rint(x / scale)).any()
    expected, _ = reference(x, 0.47, 0, 0, 2000)
    y = kernels.fake_quantize(torch.from_numpy(x), torch.tensor(0.47), torch.tensor(0.0), 0, 2000)
    np.testing.assert_array_equal(y.numpy(), expected)


def test_agrees_with_torch_where_the_reciprocal_is_exact(mode: bool) -> None:
    x = torch.randn(5000) * 20
    ours = with_gradient(
        lambda t: kernels.fake_quantize(t, torch.tensor(0.125), torch.tensor(3.0), -8, 7), x, torch.ones(5000)
    )
    theirs = with_gradient(lambda t: torch.fake_quantize_per_tensor_affine(t, 0.125, 3, -8, 7), x, torch.ones(5000))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip", [None, (0.0, math.inf), (0.0, 6.0)])
def test_compiled_and_eager_agree_to_the_bit(dtype: torch.dtype, clip: tuple[float, float] | None) -> None:
    x = any_floats(40_001).to(dtype)
    grad = any_floats(40_001).to(dtype)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        return with_gradient(lambda t: kernels.fake_quantize(t, *AFFINE, clip=clip), x, grad)

    eager, compiled = in_both_modes(run)
    assert_same_bits(eager[0], compiled[0])
    assert_same_bits(eager[1], compiled[1])


@pytest.mark.parametrize("count", [1, 7, 8, 255, 256, 257, 511, 513, 16_383, 16_384, 16_385, 40_000])
def test_every_length_is_handled_to_its_last_value(mode: bool, count: int) -> None:
    x = torch.randn(count) * 10
    y, grad = with_gradient(lambda t: kernels.fake_quantize(t, *AFFINE), x, torch.ones(count))
    expected, inside = reference(x.numpy(), 0.05, 100, 0, 255)
    np.testing.assert_array_equal(y.numpy(), expected)
    np.testing.assert_array_equal(grad.numpy(), inside)


@pytest.mark.parametrize("dtype", DTYPES)
def test_low_precision_is_computed_in_float32(mode: bool, dtype: torch.dtype) -> None:
    x = (torch.randn(1000) * 6).to(dtype)
    expected, _ = reference(x.float().numpy(), 0.05, 100, 0, 255)
    y = kernels.fake_quantize(x, *AFFINE)
    assert y.dtype == dtype
    assert torch.equal(y, torch.from_numpy(expected).to(dtype))


LAYOUTS = {
    "channels last": lambda: torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last),
    "transposed": lambda: torch.randn(30, 40).t(),
    "with gaps": lambda: torch.randn(40, 40)[::2, 1:31],
    "expanded": lambda: torch.randn(1, 40).expand(30, 40),
    "scalar": lambda: torch.randn(()),
    "empty": lambda: torch.randn(0, 4),
    "offset": lambda: torch.randn(1001)[1:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_values_places_and_gradients(mode: bool, layout: str) -> None:
    x = LAYOUTS[layout]().detach() * 10
    leaf = x.clone(memory_format=torch.contiguous_format).requires_grad_()
    view = torch.as_strided(leaf, x.shape, leaf.stride()).contiguous()
    y = kernels.fake_quantize(x.requires_grad_(), *AFFINE)
    plain = kernels.fake_quantize(view, *AFFINE)
    assert torch.equal(y, plain)
    if layout == "channels last":
        assert y.is_contiguous(memory_format=torch.channels_last)
    grad = torch.randn(x.shape)  # contiguous, whatever the layout of x
    (gx,) = torch.autograd.grad(y, x, grad)
    (gp,) = torch.autograd.grad(plain, view, grad)
    assert torch.equal(gx, gp)


def test_an_expanded_gradient_is_taken(mode: bool) -> None:
    x = (torch.randn(300) * 10).requires_grad_()
    kernels.fake_quantize(x, *AFFINE).sum().backward()
    _, inside = reference(x.detach().numpy(), 0.05, 100, 0, 255)
    np.testing.assert_array_equal(x.grad.numpy(), inside)


def test_nan_and_infinite_gradients_outside_become_zero(mode: bool) -> None:
    x = torch.tensor([1e9, -1e9, math.nan, math.inf, 0.0])
    grad = torch.tensor([math.nan, math.inf, math.nan, -math.inf, 2.0])
    _, gx = with_gradient(lambda t: kernels.fake_quantize(t, *AFFINE), x, grad)
    assert gx.tolist() == [0.0, 0.0, 0.0, 0.0, 2.0]


def test_a_scale_changed_before_backward_does_not_matter(mode: bool) -> None:
    scale, zero_point = torch.tensor(0.05), torch.tensor(100.0)
    x = (torch.randn(1000) * 10).requires_grad_()
    y = kernels.fake_quantize(x, scale, zero_point, 0, 255)
    scale.fill_(1.0)
    zero_point.fill_(0.0)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), reference(x.detach().numpy(), 0.05, 100, 0, 255)[1])


def test_gradients_of_gradients_pass_through_the_same_mask(mode: bool) -> None:
    x = (torch.randn(100) * 10).requires_grad_()
    v = torch.randn(100, requires_grad=True)
    (gx,) = torch.autograd.grad(kernels.fake_quantize(x, *AFFINE), x, v, create_graph=True)
    (gv,) = torch.autograd.grad(gx.sum(), v)
    np.testing.assert_array_equal(gv.numpy(), reference(x.detach().numpy(), 0.05, 100, 0, 255)[1])


def saved_bytes(function) -> int:
    sizes = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        sizes.append(t.untyped_storage().nbytes())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function()
    return sum(sizes)


def test_a_mask_is_all_that_is_saved(mode: bool) -> None:
    x = torch.randn(16_384, requires_grad=True)
    assert saved_bytes(lambda: kernels.fake_quantize(x, *AFFINE)) == 16_384 // (8 if mode else 1)


@pytest.mark.parametrize(
    ("clip", "activation"), [((0.0, math.inf), torch.nn.functional.relu), ((0.0, 6.0), torch.nn.functional.relu6)]
)
def test_clip_is_the_activation_function_before_it(mode: bool, clip: tuple[float, float], activation) -> None:
    x = torch.cat([torch.randn(2000) * 5, torch.tensor([0.0, -0.0, 6.0, 1e9, -1e9, math.inf, -math.inf])])
    grad = torch.randn(x.shape)
    fused = with_gradient(lambda t: kernels.fake_quantize(t, *AFFINE, clip=clip), x, grad)
    apart = with_gradient(lambda t: kernels.fake_quantize(activation(t), *AFFINE), x, grad)
    assert torch.equal(fused[0], apart[0])
    assert torch.equal(fused[1], apart[1])


@pytest.mark.parametrize("clip", [None, (0.0, 6.0)])
def test_observing_changes_nothing_and_gives_the_range(mode: bool, clip: tuple[float, float] | None) -> None:
    x = (torch.randn(20_000) * 5).requires_grad_()
    y, observed = kernels.fake_quantize_and_observe(x, *AFFINE, clip=clip)
    assert torch.equal(y, kernels.fake_quantize(x, *AFFINE, clip=clip))
    seen = x.detach() if clip is None else x.detach().clamp(*clip)
    assert observed.tolist() == [seen.min().item(), seen.max().item()]
    assert not observed.requires_grad
    y.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("nan", [math.nan, -math.nan])
def test_a_nan_shows_in_both_ends_of_the_observed_range(mode: bool, nan: float) -> None:
    x = torch.randn(1000)
    x[567] = torch.tensor(nan)
    _, observed = kernels.fake_quantize_and_observe(x, *AFFINE)
    assert observed.isnan().tolist() == [True, True]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [False, True])
def test_the_grid_is_that_of_onnx(mode: bool, bits: int, signed: bool) -> None:
    qmin, qmax = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    zero = 0 if signed else 2 ** (bits - 1) - 1
    kind = TensorProto.INT8 if signed else TensorProto.UINT8
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["wide"]),
            helper.make_node("Clip", ["wide", "qmin", "qmax"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        "grid",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [
            helper.make_tensor_value_info("q", kind, [None]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [None]),
        ],
        [
            helper.make_tensor("scale", TensorProto.FLOAT, [], [0.3]),
            helper.make_tensor("zero", kind, [], [zero]),
            helper.make_tensor("qmin", kind, [], [qmin]),
            helper.make_tensor("qmax", kind, [], [qmax]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    x = torch.cat([torch.arange(-600, 600) * 0.15, torch.randn(1000) * 30]).float()
    q, y = ReferenceEvaluator(model).run(None, {"x": x.numpy()})
    scale, zero_point = torch.tensor(0.3), torch.tensor(float(zero))
    np.testing.assert_array_equal(kernels.fake_quantize(x, scale, zero_point, qmin, qmax).numpy(), y)
    integers = quantize_integers(x, scale, zero_point, None, qmin, qmax)
    np.testing.assert_array_equal(integers.numpy(), q)
    assert len(np.unique(q)) == qmax - qmin + 1


SHAPES = [((8, 3, 3, 3), 0), ((6, 4, 5), 1), ((4, 10, 2), 2), ((5, 70), 0)]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_have_a_scale_per_channel(mode: bool, shape: tuple[int, ...], axis: int, dtype: torch.dtype) -> None:
    w = torch.randn(shape).to(dtype)
    scale = torch.rand(shape[axis]) * 0.1 + 0.01
    y = kernels.fake_quantize_weight(w, scale, axis, -7, 7)
    for channel in range(shape[axis]):
        expected, _ = reference(w.select(axis, channel).float().numpy(), scale[channel].item(), 0, -7, 7)
        assert torch.equal(y.select(axis, channel), torch.from_numpy(expected).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_agree_to_the_bit_in_both_modes(dtype: torch.dtype) -> None:
    w = any_floats(4000)[:9198].reshape(73, 126).to(dtype)
    scale = torch.rand(73) * 0.1 + 0.01
    grad = torch.randn(w.shape)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        return with_gradient(lambda t: kernels.fake_quantize_weight(t, scale, 0, -7, 7, clips=True), w, grad)

    eager, compiled = in_both_modes(run)
    assert_same_bits(eager[0], compiled[0])
    assert_same_bits(eager[1], compiled[1])


@pytest.mark.parametrize("size", [35, 32])
def test_groups_of_inputs_share_a_scale(mode: bool, size: int) -> None:
    w = torch.randn(4, 7, 2, 5)
    groups = math.ceil(70 / size)
    scale = torch.rand(4, groups) * 0.1 + 0.01
    y = kernels.fake_quantize_weight(w, scale, 0, -7, 7, group_size=size).flatten(1)
    for channel in range(4):
        for group in range(groups):
            part = slice(group * size, (group + 1) * size)
            expected, _ = reference(w.flatten(1)[channel, part].numpy(), scale[channel, group].item(), 0, -7, 7)
            np.testing.assert_array_equal(y[channel, part].numpy(), expected)


def test_a_single_scale_serves_a_whole_weight(mode: bool) -> None:
    w = torch.randn(30, 20)
    y = kernels.fake_quantize_weight(w, torch.tensor(0.1), None, -7, 7)
    np.testing.assert_array_equal(y.numpy(), reference(w.numpy(), 0.1, 0, -7, 7)[0])


def test_a_covering_range_saves_nothing_and_passes_every_gradient(mode: bool) -> None:
    w = torch.randn(8, 4, requires_grad=True)
    assert saved_bytes(lambda: kernels.fake_quantize_weight(w, torch.tensor(0.1), None, -1, 1)) == 0
    kernels.fake_quantize_weight(w, torch.full((8,), 0.1), 0, -1, 1).sum().backward()
    assert torch.equal(w.grad, torch.ones(8, 4))


def test_a_clipping_range_stops_gradients_outside(mode: bool) -> None:
    w = torch.randn(8, 4, requires_grad=True)
    kernels.fake_quantize_weight(w, torch.full((8,), 0.5), 0, -1, 1, clips=True).sum().backward()
    np.testing.assert_array_equal(w.grad.numpy(), reference(w.detach().numpy(), 0.5, 0, -1, 1)[1])


def test_zero_weights_stay_zero(mode: bool) -> None:
    w = torch.randn(16, 16) * (torch.rand(16, 16) > 0.5)
    y = kernels.fake_quantize_weight(w, torch.rand(16) + 0.01, 0, -127, 127)
    assert bool((y[w == 0] == 0).all())


@pytest.mark.parametrize(
    ("scale", "axis", "group_size"),
    [(torch.ones(3), 0, None), (torch.ones(4), None, None), (torch.ones(4, 2), 0, None), (torch.ones(4, 2), 0, 2)],
)
def test_scales_that_do_not_fit_are_refused(scale: torch.Tensor, axis: int | None, group_size: int | None) -> None:
    with pytest.raises(CompressionError, match="expected shape"):
        kernels.fake_quantize_weight(torch.randn(4, 6), scale, axis, -7, 7, group_size=group_size)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_integers_times_the_scale_are_the_fake_quantized_weight(shape: tuple[int, ...], axis: int) -> None:
    w, scale = torch.randn(shape), torch.rand(shape[axis]) * 0.1 + 0.01
    q = quantize_weight_integers(w, scale, axis, -7, 7)
    assert q.dtype == torch.int8
    restored = q.float() * spread_scale(scale, w.shape, axis)
    assert torch.equal(restored, kernels.fake_quantize_weight(w, scale, axis, -7, 7))


def test_integers_of_nan_are_refused() -> None:
    with pytest.raises(CompressionError, match=r"shape \(2,\) holds NaN"):
        quantize_integers(torch.tensor([1.0, math.nan]), torch.tensor(1.0), None, None, 0, 255)


def test_threads_may_call_at_the_same_time(mode: bool) -> None:
    x = torch.randn(50_000)
    expected = kernels.fake_quantize(x, *AFFINE)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: kernels.fake_quantize(x, *AFFINE), range(16)))
    assert all(torch.equal(y, expected) for y in results)


class Quantized(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight = kernels.fake_quantize_weight(self.linear.weight, torch.full((8,), 0.01), 0, -127, 127)
        hidden = torch.nn.functional.linear(kernels.fake_quantize(x, *AFFINE), weight, self.linear.bias)
        return kernels.fake_quantize_and_observe(hidden, *AFFINE, clip=(0.0, math.inf))


def test_a_compiled_module_has_no_graph_break_and_the_same_bits() -> None:
    module = Quantized()
    compiled = torch.compile(module, fullgraph=True, backend="inductor" if True in MODES else "aot_eager")
    x = torch.randn(32, 16)
    results = []
    for run in (module, compiled):
        leaf = x.clone().requires_grad_()
        y, observed = run(leaf)
        y.sum().backward()
        results.append((y.detach(), observed, leaf.grad, module.linear.weight.grad.clone()))
        module.zero_grad()
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_inference_mode_is_no_obstacle(mode: bool) -> None:
    x = torch.randn(100)
    with torch.inference_mode():
        y = kernels.fake_quantize(x, *AFFINE)
    np.testing.assert_array_equal(y.numpy(), reference(x.numpy(), 0.05, 100, 0, 255)[0])


@pytest.mark.parametrize("layout", ["channels last", "transposed", "with gaps", "scalar", "offset"])
def test_a_result_written_over_its_input_is_the_same(mode: bool, layout: str) -> None:
    x = LAYOUTS[layout]().detach() * 10
    grad = torch.randn(x.shape)
    expected = with_gradient(lambda t: kernels.fake_quantize(t, *AFFINE), x, grad)
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    used_up = leaf * 1
    y = kernels.fake_quantize(used_up, *AFFINE, scratch=used_up)
    y.backward(grad)
    assert torch.equal(y, expected[0])
    assert torch.equal(leaf.grad, expected[1])


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64])
def test_results_do_not_depend_on_the_default_type(default: torch.dtype) -> None:
    # Lightning's true half precision sets it inside a step; compiled kernels write float32 into what they are given.
    x = torch.randn(70_000)
    scale, zero_point = torch.tensor(0.1), torch.tensor(3.0)
    native.use_compiled(True)
    try:
        expected = kernels.fake_quantize_and_observe(x, scale, zero_point, 0, 15)
        before = torch.get_default_dtype()
        torch.set_default_dtype(default)
        try:
            found = kernels.fake_quantize_and_observe(x, scale, zero_point, 0, 15)
            largest = observers.weight_scale(x.reshape(700, 100), 0, 127)
        finally:
            torch.set_default_dtype(before)
    finally:
        native.use_compiled("auto")
    assert found[1].dtype == largest.dtype == torch.float32
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
