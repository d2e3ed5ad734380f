from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from kernel_modes import MODES

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.fake_quantize import cpu as native
from lightning_compress.quantization.fake_quantize import functional as kernels
from lightning_compress.quantization.ranges import observers


@pytest.fixture(params=MODES, ids=lambda mode: "compiled" if mode else "eager")
def mode(request: pytest.FixtureRequest) -> Iterator[bool]:
    native.use_compiled(request.param)
    yield request.param
    native.use_compiled("auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (7,), (20_001,), (3, 4, 5)])
def test_minmax_is_numpys(mode: bool, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).to(dtype)
    found = observers.minmax(x)
    assert found.dtype == torch.float32
    assert found.tolist() == [x.float().numpy().min(), x.float().numpy().max()]


@pytest.mark.parametrize("bad", [math.nan, -math.nan])
def test_minmax_of_nan_is_nan(mode: bool, bad: float) -> None:
    assert observers.minmax(torch.tensor([1.0, bad, 2.0])).isnan().tolist() == [True, True]


def test_minmax_sees_infinities(mode: bool) -> None:
    assert observers.minmax(torch.tensor([math.inf, -math.inf, 1.0])).tolist() == [-math.inf, math.inf]


@pytest.mark.parametrize("q", [50, 90, 99, 99.9, 99.99, 100])
@pytest.mark.parametrize("count", [1, 2, 1000, 65_536])
def test_percentile_is_numpys(q: float, count: int) -> None:
    x = torch.randn(count)
    expected = np.percentile(x.numpy().astype(np.float64), [100 - q, q])
    np.testing.assert_allclose(observers.percentile(x, q).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_percentile_of_a_large_tensor_looks_at_every_nth_value() -> None:
    x = torch.randn(4, 50_000)
    expected = np.percentile(x.reshape(-1)[::4].numpy().astype(np.float64), [0.1, 99.9])
    np.testing.assert_allclose(observers.percentile(x, 99.9).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_a_nan_makes_every_observation_nan(method: str) -> None:
    x = torch.randn(1000)
    x[17] = math.nan
    assert observers.observe(x, method, 8).isnan().any()


def squared_error(x: np.ndarray, low: float, high: float, bits: int, symmetric: bool) -> float:
    if symmetric:
        qmin, qmax, zero = 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1, 0.0
        scale = max(-low, high) / qmax
    else:
        qmin, qmax = 0, 2**bits - 1
        scale = (max(high, 0) - min(low, 0)) / qmax
        zero = np.rint(-min(low, 0) / scale)
    y = (np.clip(np.rint(x / scale) + zero, qmin, qmax) - zero) * scale
    return float(((y - x) ** 2).sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_finds_the_best_of_all_clipped_ranges(bits: int, symmetric: bool) -> None:
    x = torch.randn(4000)
    values = x.numpy().astype(np.float64)
    low, high = values.min(), values.max()
    best = min(squared_error(values, low * f, high * f, bits, symmetric) for f in np.linspace(0.03, 1, 300))
    found = observers.mse(x, bits, symmetric=symmetric).tolist()
    assert squared_error(values, *found, bits, symmetric) <= best * 1.02
    if bits < 8:
        assert squared_error(values, low, high, bits, symmetric) > best * 1.2


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("qmax", [1, 7])
def test_mse_scales_of_weights_are_the_best_per_channel(axis: int | None, qmax: int) -> None:
    w = torch.randn(6, 5, 30)
    scale = observers.weight_scale(w, axis, qmax, "mse")
    rows = w.reshape(1, -1) if axis is None else w.movedim(axis, 0).flatten(1)
    for row, found in zip(rows.double().numpy(), scale.reshape(-1).double().numpy(), strict=True):
        errors = [
            ((np.clip(np.rint(row / s), -qmax, qmax) * s - row) ** 2).sum()
            for s in np.abs(row).max() / qmax * np.linspace(0.03, 1, 300)
        ]
        ours = ((np.clip(np.rint(row / found), -qmax, qmax) * found - row) ** 2).sum()
        assert ours <= min(errors) * 1.03


@pytest.mark.parametrize(("axis", "shape"), [(None, ()), (0, (6,)), (1, (5,)), (2, (7,))])
def test_minmax_scales_of_weights_put_the_largest_weight_on_the_last_integer(
    mode: bool, axis: int | None, shape: tuple[int, ...]
) -> None:
    w = torch.randn(6, 5, 7)
    scale = observers.weight_scale(w, axis, 127)
    assert scale.shape == shape
    others = tuple(i for i in range(3) if i != axis)
    np.testing.assert_array_equal(scale.numpy(), np.abs(w.numpy()).max(axis=others) / np.float32(127))


@pytest.mark.parametrize("size", [7, 10, 32, 100])
def test_groups_have_scales_of_their_own(mode: bool, size: int) -> None:
    w = torch.randn(6, 5, 7)
    scale = observers.weight_scale(w, 0, 7, group_size=size).numpy()
    flat = np.abs(w.flatten(1).numpy())
    expected = [[row[i : i + size].max() / np.float32(7) for i in range(0, 35, size)] for row in flat]
    np.testing.assert_array_equal(scale, np.array(expected))


def test_percentile_scales_of_weights_are_numpys() -> None:
    w = torch.randn(4, 2000)
    expected = np.percentile(np.abs(w.numpy()), 99.99, axis=1) / 7
    np.testing.assert_allclose(observers.weight_scale(w, 0, 7, "percentile").numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_learned_scales_of_weights_start_as_the_paper_says(axis: int | None) -> None:
    w = torch.randn(4, 5, 6)
    others = tuple(i for i in range(3) if i != axis)
    expected = 2 * np.abs(w.numpy()).mean(axis=others) / math.sqrt(7)
    np.testing.assert_allclose(observers.weight_scale(w, axis, 7, "learned").numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "learned"])
def test_a_channel_of_zeros_takes_a_scale_from_the_others(mode: bool, method: str) -> None:
    w = torch.randn(4, 50)
    w[2] = 0
    scale = observers.weight_scale(w, 0, 7, method)
    assert scale[2] == scale[[0, 1, 3]].max()
    assert not kernels.fake_quantize_weight(w, scale, 0, -7, 7).isnan().any()


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "learned"])
def test_a_weight_of_zeros_has_a_positive_scale(mode: bool, method: str) -> None:
    assert bool((observers.weight_scale(torch.zeros(4, 5), 0, 7, method) > 0).all())


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(CompressionError, match="expected minmax, percentile, mse or learned, got 'kl'"):
        observers.weight_scale(torch.randn(4, 5), 0, 7, "kl")


def moving_average(observations: list[list[float]], momentum: float) -> np.ndarray:
    state = None
    for observed in np.array(observations, dtype=np.float64):
        if np.isfinite(observed).all():
            state = observed if state is None else state + momentum * (observed - state)
    assert state is not None
    return state


def state() -> tuple[torch.Tensor, ...]:
    return torch.full((2,), torch.nan), torch.zeros((), dtype=torch.int64), torch.ones(()), torch.zeros(())


OBSERVATIONS = [[math.nan, 1.0], [-1.0, 2.0], [-math.inf, 3.0], [-2.0, 2.5], [-1.5, 2.0]]


def test_the_moving_average_begins_with_the_first_finite_range_and_counts_the_others(mode: bool) -> None:
    range_, nonfinite, *_ = state()
    for observed in OBSERVATIONS:
        observers.ema_(range_, torch.tensor(observed), 0.1, nonfinite)
    np.testing.assert_allclose(range_.numpy(), moving_average(OBSERVATIONS, 0.1), rtol=1e-6)
    assert nonfinite.item() == 2


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 8])
def test_update_is_the_average_and_the_parameters_that_follow(mode: bool, symmetric: bool, bits: int) -> None:
    range_, nonfinite, scale, zero_point = state()
    for observed in OBSERVATIONS:
        observers.update_(range_, torch.tensor(observed), 0.1, nonfinite, scale, zero_point, bits, symmetric=symmetric)
    low, high = moving_average(OBSERVATIONS, 0.1)
    expected = max(-low, high) / (2 ** (bits - 1) - 1) if symmetric else (high - low) / (2**bits - 1)
    assert scale.item() == pytest.approx(expected, rel=1e-6)
    assert zero_point.item() == (0 if symmetric else np.rint(-low / expected))
    assert nonfinite.item() == 2


def test_update_agrees_to_the_bit_in_both_modes() -> None:
    results = []
    observations = (torch.randn(50, 2) * torch.logspace(-38, 38, 50)[:, None]).sort().values
    observations[7] = math.nan
    for mode in MODES:
        native.use_compiled(mode)
        for symmetric in (False, True):
            range_, nonfinite, scale, zero_point = state()
            for observed in observations:
                observers.update_(range_, observed, 0.1, nonfinite, scale, zero_point, 8, symmetric=symmetric)
                results.append((mode, torch.stack([*range_, scale, zero_point, nonfinite.float()])))
    native.use_compiled("auto")
    eager = torch.stack([r for mode, r in results if mode is MODES[0]])
    compiled = torch.stack([r for mode, r in results if mode is MODES[-1]])
    assert torch.equal(eager, compiled)
    assert bool(eager.isfinite().all())


def test_before_the_first_finite_range_the_scale_is_one(mode: bool) -> None:
    range_, nonfinite, scale, zero_point = state()
    observers.update_(range_, torch.tensor([math.nan, math.nan]), 0.1, nonfinite, scale, zero_point, 8)
    assert (scale.item(), zero_point.item(), nonfinite.item()) == (1.0, 0.0, 1)


def test_a_range_made_under_inference_mode_does_not_poison_training(mode: bool) -> None:
    range_, nonfinite, scale, zero_point = state()
    with torch.inference_mode():
        observed = observers.minmax(torch.randn(10))
        observers.update_(range_, observed, 0.1, nonfinite, scale, zero_point, 8)
    x = torch.randn(10, requires_grad=True)
    observers.update_(range_, observers.minmax(x), 0.1, nonfinite, scale, zero_point, 8)
    kernels.fake_quantize(x, scale, zero_point, 0, 255).sum().backward()
    assert not range_.is_inference()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 3.0), (-3.0, -0.5), (0.0, 1.0), (-1e-3, 1e3)])
def test_affine_ranges_hold_zero_exactly_and_both_ends(bits: int, low: float, high: float) -> None:
    scale, zero_point = observers.affine_qparams(torch.tensor(low), torch.tensor(high), bits)
    assert zero_point == zero_point.round()
    assert 0 <= zero_point <= 2**bits - 1
    ends = torch.tensor([0.0, min(low, 0), max(high, 0)])
    restored = kernels.fake_quantize(ends, scale, zero_point, 0, 2**bits - 1)
    assert restored[0] == 0
    assert bool(((restored - ends).abs() <= scale * 0.5001).all())


@pytest.mark.parametrize("value", [0.0, 5.0, -5.0, 1e-45, 3e38, -3e38])
@pytest.mark.parametrize("qparams", [observers.affine_qparams, observers.symmetric_qparams])
def test_constant_tensors_quantize_without_nan(qparams, value: float) -> None:
    scale, zero_point = qparams(torch.tensor(value), torch.tensor(value), 8)
    assert math.isfinite(scale.item())
    assert scale > 0
    qmin, qmax = (0, 255) if qparams is observers.affine_qparams else (-127, 127)
    restored = kernels.fake_quantize(torch.full((3,), value), scale, zero_point, qmin, qmax)
    torch.testing.assert_close(restored, torch.full((3,), value), rtol=1e-2, atol=1e-30)


def test_the_widest_float_range_does_not_overflow() -> None:
    scale, zero_point = observers.affine_qparams(torch.tensor(-3.4e38), torch.tensor(3.4e38), 8)
    assert math.isfinite(scale.item())
    assert zero_point == 128


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_ranges_reach_the_larger_end(bits: int) -> None:
    scale, zero_point = observers.symmetric_qparams(torch.tensor(-3.0), torch.tensor(2.0), bits)
    assert scale.item() == pytest.approx(3 / (2 ** (bits - 1) - 1))
    assert zero_point == 0
