"""Each kernel, run by Triton's interpreter, beside the eager reference; together they are tested on_accelerator."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from lightning_compress.quantization.fake_quantize import cpu as native
from lightning_compress.quantization.fake_quantize import functional, lsq, reference
from lightning_compress.quantization.fake_quantize.gpu import operators as ops
from lightning_compress.quantization.fake_quantize.gpu import weight_operators
from lightning_compress.quantization.fake_quantize.gpu.layout import PART
from lightning_compress.quantization.fake_quantize.scale_shapes import spread_scale
from lightning_compress.quantization.ranges import observers

Clip = tuple[float, float] | None
CLIPS = pytest.mark.parametrize("clip", [None, (0.0, math.inf), (-1.0, 1.5)], ids=str)
GRIDS = pytest.mark.parametrize(("qmin", "qmax"), [(0, 255), (-7, 7)], ids=["affine", "symmetric"])
# More than one block of 4096 values, and a last word that is not full.
SIZE = 4096 + 77


@pytest.fixture(autouse=True)
def _plain_reference() -> Iterator[None]:
    native.use_compiled(False)
    yield
    native.use_compiled("auto")


def state(low: float = math.nan, high: float = math.nan) -> tuple[torch.Tensor, ...]:
    """Range, scale, zero point and count of non-finite observations."""
    return torch.tensor([low, high]), torch.ones(()), torch.zeros(()), torch.zeros((), dtype=torch.int64)


def updated(x: torch.Tensor, before: tuple[torch.Tensor, ...], method: str, qmin: int, qmax: int, clip: Clip) -> None:
    """The same in plain operations, in place."""
    seen, bits = (x if clip is None else x.clamp(*clip)).float(), (qmax - qmin).bit_length()
    range_, scale, zero, nonfinite = before
    observed = observers.observe(seen, method, bits, symmetric=qmin < 0)
    observers.update_(range_, observed, 0.25, nonfinite, scale, zero, bits, symmetric=qmin < 0)


def same(found: tuple[torch.Tensor, ...], wanted: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)) for a, b in zip(found, wanted, strict=True))


@CLIPS
@GRIDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_values_mask_and_range_are_those_of_the_reference(clip: Clip, qmin: int, qmax: int, dtype: torch.dtype) -> None:
    x, grad = (torch.randn(SIZE) * 3).to(dtype), torch.randn(SIZE).to(dtype)
    x[5], ends = torch.nan, clip or (None, None)
    found, wanted = state(-2.0, 3.0), state(-2.0, 3.0)
    for tensors in (found, wanted):
        updated(torch.linspace(-2.0, 3.0, 9), tensors, "minmax", qmin, qmax, clip)
    y, words = ops.fake_quantize(x, *found, qmin, qmax, *ends, 0.25, True)
    values, inside = reference.quantize(x, wanted[1], wanted[2], qmin, qmax, clip, mask=True)
    assert inside is not None
    # The interpreter cuts float32 off to bfloat16, where processors round: one unit in the last of eight bits.
    ulp = 2.0**-7 if dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(y.nan_to_num(99), values.nan_to_num(99), rtol=ulp, atol=0.0)
    assert torch.equal(ops.pass_inside(grad, words), torch.where(inside, grad, 0.0))
    updated(x, wanted, "minmax", qmin, qmax, clip)
    assert same(found, wanted)
    assert int(found[3]) == 1
    x[5] = 0.5
    ops.fake_quantize_(x, *found, qmin, qmax, *ends, 0.25, True)
    assert not torch.equal(found[0], wanted[0])


@CLIPS
@GRIDS
@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_ranges_are_those_of_the_observers(
    method: str, clip: Clip, qmin: int, qmax: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observers, "FRACTIONS", observers.FRACTIONS[::30])
    x, ends = torch.randn(SIZE) * 4, clip or (None, None)
    found, wanted = state(), state()
    for scaled in (x, x * 1.5):
        arguments = (*found, qmin, qmax, *ends, 0.25)
        if method == "minmax":
            ops.observe_minmax_(scaled, *arguments)
        elif method == "percentile":
            ops.observe_percentile_(scaled, *arguments, observers.PERCENTILE, 3000)
        else:
            ops.observe_least_error_(scaled, ops.minmax(scaled, *ends), *arguments, observers.FRACTIONS, 3000)
        sampled = observers.sample(scaled, 3000) if method == "percentile" else scaled
        if method == "mse":
            monkeypatch.setattr(observers, "SEARCH_SAMPLE", 3000)
        updated(sampled, wanted, method, qmin, qmax, clip)
        assert same(found, wanted)


@pytest.mark.parametrize("odd", [[math.nan], [math.inf], [math.inf, -math.inf], [-math.inf] * 3])
def test_percentiles_take_what_is_not_finite_as_the_observer_does(odd: list[float]) -> None:
    x = torch.randn(900)
    x[: len(odd)] = torch.tensor(odd)
    found, wanted = state(), state()
    ops.observe_percentile_(x, *found, 0, 255, None, None, 0.25, observers.PERCENTILE, observers.SAMPLE)
    updated(x, wanted, "percentile", 0, 255, None)
    assert same(found, wanted)


def test_values_pass_while_there_is_no_range() -> None:
    x = torch.randn(40)
    y, words = ops.fake_quantize(x, *state(), 0, 255, 0.0, math.inf, None, True)
    assert torch.equal(y, x.relu())
    assert torch.equal(ops.pass_inside(torch.ones(40), words), (x > 0).float())
    y, codes, grid = ops.learn(x, torch.zeros(()), torch.zeros(()), torch.ones(()), state()[0], 0, 255, None, None)
    assert torch.equal(y, x)
    out, _ = ops.learned_pass(torch.ones(40), codes, grid, None, torch.ones(()), None, None, 1.0, 0, 255, None, None)
    assert torch.equal(out, torch.ones(40))


@CLIPS
@GRIDS
def test_learned_values_and_gradients_are_those_of_the_reference(clip: Clip, qmin: int, qmax: int) -> None:
    x, grad, ends = torch.randn(SIZE), torch.randn(SIZE), clip or (None, None)
    log_scale, width = torch.tensor(-3.0 if qmin == 0 else -1.5), torch.tensor(2.0)
    shift = torch.tensor(-0.4) if qmin == 0 else None
    offset = None if shift is None else shift * width
    zero = None if offset is None else lsq.learned_zero_point(offset, log_scale.exp(), qmin, qmax)
    y, codes, grid = ops.learn(x, log_scale, shift, width, state(-1, 1)[0], qmin, qmax, *ends)
    values, wanted_codes = reference.learn(x, log_scale.exp(), zero, qmin, qmax, clip)
    assert torch.equal(y, values)
    assert torch.equal(codes, wanted_codes)
    out, new = ops.learned_pass(grad, codes, grid, shift, width, None, None, 0.0123, qmin, qmax, *ends)
    to_x, to_scale, to_offset = reference.learned_pass(
        grad, codes, log_scale.exp(), zero, offset, qmin, qmax, clip, 0.0123
    )
    wanted = [to_scale * log_scale.exp()] + ([] if to_offset is None else [to_offset * width])
    assert torch.equal(out, to_x)
    assert all(torch.equal(a, b) for a, b in zip(new, wanted, strict=True))
    sums = [one.clone() for one in new]
    ops.learned_pass(grad, codes, grid, shift, width, *sums, *[None] * (2 - len(sums)), 0.0123, qmin, qmax, *ends)
    assert all(torch.equal(a, b + b) for a, b in zip(sums, new, strict=True))


# Axis, group and largest integer of each weight, by its shape.
WEIGHTS = {
    (6, 3, 3, 3): (0, None, 127),
    (5, 40): (0, 16, 7),
    (4, 7, 2): (1, None, 7),
    (3, PART + 900): (None, None, 127),
    (2, PART + 900): (0, None, 7),
}


def weights() -> tuple[list[torch.Tensor], tuple[list[int], list[int], list[int]]]:
    found = [torch.randn(shape) for shape in WEIGHTS]
    found[0][2], found[1][0, 3] = 0.0, torch.nan
    found[0] = found[0].contiguous(memory_format=torch.channels_last)
    axes, groups, qmaxes = zip(*WEIGHTS.values(), strict=True)
    return found, ([-1 if a is None else a for a in axes], [g or 0 for g in groups], list(qmaxes))


def test_all_weights_of_a_model_are_quantized_as_one_by_one() -> None:
    given, arguments = weights()
    values, outside, _ = weight_operators.quantize_weights(given, *arguments, None, False)
    assert outside == []
    for w, y, (axis, group, qmax) in zip(given, values, WEIGHTS.values(), strict=True):
        scale = observers.weight_scale(w, axis, qmax, group_size=group)
        wanted = functional.fake_quantize_weight(w, scale, axis, -qmax, qmax, group_size=group)
        assert torch.equal(y.nan_to_num(99), wanted.nan_to_num(99))
        assert y.stride() == w.stride()


def test_scales_of_least_error_and_the_weights_clipped_by_them() -> None:
    given, arguments = weights()
    fractions = list(observers.FRACTIONS[:40:9])
    found, largest = weight_operators.search_weights(given[:3], *(a[:3] for a in arguments), fractions)
    first = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observers, "FRACTIONS", tuple(fractions))
        for w, (axis, group, qmax) in zip(given[:3], WEIGHTS.values(), strict=False):
            for flat, method in ((found, "mse"), (largest, "minmax")):
                wanted = observers.weight_scale(w, axis, qmax, method, group_size=group)
                assert torch.equal(flat[first : first + wanted.numel()], wanted.reshape(-1))
            first += wanted.numel()
    ratio = torch.rand(first) * 0.4 + 0.4
    values, outside, _ = weight_operators.quantize_weights(given[:3], *(a[:3] for a in arguments), ratio, False)
    first = 0
    for w, y, out, (axis, group, qmax) in zip(given, values, outside, WEIGHTS.values(), strict=False):
        scale = observers.weight_scale(w, axis, qmax, group_size=group)
        scale = scale * ratio[first : first + scale.numel()].reshape(scale.shape)
        first += scale.numel()
        wide = spread_scale(scale, w.shape, axis, group)
        wanted, inside = reference.quantize(w, wide, None, -qmax, qmax, mask=True)
        assert inside is not None
        assert torch.equal(y.nan_to_num(99), wanted.nan_to_num(99))
        assert torch.equal(out, ~inside)
        assert out.any()


@pytest.mark.parametrize("index", [0, 2, 3, 4])
def test_learned_weights_and_their_gradients_are_those_of_the_reference(index: int) -> None:
    (axis, _, qmax), shape = list(WEIGHTS.values())[index], list(WEIGHTS)[index]
    w = torch.randn(shape).requires_grad_()
    log_scale = (torch.randn(() if axis is None else shape[axis]) * 0.1 - 2).requires_grad_()
    wanted = lsq.learned_fake_quantize(w, log_scale.exp(), -qmax, qmax, 0.0321, axis=axis or 0)
    grad = torch.randn(shape)
    wanted.backward(grad)
    assert w.grad is not None
    number, given = -1 if axis is None else axis, w.detach()
    scales = torch.cat([torch.ones(2), log_scale.detach().exp().reshape(-1)])
    (y,), _, _ = weight_operators.quantize_weights([given], [number], [0], [qmax], scales[2:], True)
    assert torch.equal(y, wanted)
    out, (new,) = weight_operators.learned_weight_pass(grad, given, number, qmax, scales, 2, None, 0.0321)
    assert torch.equal(out, w.grad)
    assert torch.equal(new, log_scale.grad)
    total = new.clone()
    weight_operators.learned_weight_pass(grad, given, number, qmax, scales, 2, total, 0.0321)
    assert torch.equal(total, new + new)
