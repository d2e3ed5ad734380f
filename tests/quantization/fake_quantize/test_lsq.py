from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from kernel_modes import MODES, assert_same_bits
from lsq_paper import paper

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.fake_quantize import cpu as native
from lightning_compress.quantization.fake_quantize import functional as kernels
from lightning_compress.quantization.fake_quantize.lsq import gradient_scale, learned_fake_quantize, learned_zero_point


@pytest.fixture(params=MODES, ids=lambda mode: "compiled" if mode else "eager")
def mode(request: pytest.FixtureRequest) -> Iterator[bool]:
    native.use_compiled(request.param)
    yield request.param
    native.use_compiled("auto")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gradients_are_those_of_the_papers_pseudo_code(mode: bool, bits: int) -> None:
    qn, qp = 2 ** (bits - 1), 2 ** (bits - 1) - 1
    x = torch.randn(20_003) * 2
    grad = torch.randn(20_003)
    s = torch.tensor(0.31)
    ours = [x.clone().requires_grad_(), s.clone().requires_grad_()]
    learned_fake_quantize(*ours, -qn, qp, 0.02).backward(grad)
    theirs = [x.double().requires_grad_(), s.double().requires_grad_()]
    paper(*theirs, qn, qp, 0.02).backward(grad.double())
    torch.testing.assert_close(ours[0].grad, theirs[0].grad.float())
    torch.testing.assert_close(ours[1].grad, theirs[1].grad.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "axis"), [((6, 4, 3, 3), 0), ((6, 5, 4), 1), ((3, 7), -1), ((2, 20_000), 0)])
def test_channels_learn_steps_of_their_own(mode: bool, shape: tuple[int, ...], axis: int) -> None:
    x, grad = torch.randn(shape), torch.randn(shape)
    s = torch.rand(shape[axis]) * 0.3 + 0.05
    ours = [x.clone().requires_grad_(), s.clone().requires_grad_()]
    learned_fake_quantize(*ours, -7, 7, 0.1, axis=axis).backward(grad)
    for channel in range(shape[axis]):
        theirs = [x.select(axis, channel).double().requires_grad_(), s[channel].double().requires_grad_()]
        paper(*theirs, 7, 7, 0.1).backward(grad.select(axis, channel).double())
        torch.testing.assert_close(ours[0].grad.select(axis, channel), theirs[0].grad.float())
        torch.testing.assert_close(ours[1].grad[channel], theirs[1].grad.float(), rtol=1e-4, atol=1e-4)


def test_the_slope_of_the_step_is_equation_3(mode: bool) -> None:
    v = torch.tensor([-9.0, -4.0, -3.4, 0.0, 0.3, 0.5, 2.9, 3.0, 9.0])
    expected = [-4.0, -4.0, 0.4, 0.0, -0.3, -0.5, 0.1, 3.0, 3.0]
    for value, slope in zip(v, expected, strict=True):
        s = torch.tensor(1.0, requires_grad=True)
        learned_fake_quantize(value.reshape(1), s, -4, 3, 1.0).sum().backward()
        assert s.grad.item() == pytest.approx(slope, abs=1e-6)


def test_values_are_those_of_fake_quantize(mode: bool) -> None:
    x, s = torch.randn(1000) * 3, torch.tensor(0.1)
    assert torch.equal(learned_fake_quantize(x, s, -7, 7, 1.0), kernels.fake_quantize(x, s, torch.zeros(()), -7, 7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_compiled_and_eager_agree_to_the_bit(dtype: torch.dtype) -> None:
    x = (torch.randn(50_001) * 3).to(dtype)
    x[:4] = torch.tensor([math.inf, -math.inf, 0.75, -0.75])
    grad = torch.randn(50_001).to(dtype)
    results = []
    for mode in MODES:
        native.use_compiled(mode)
        leaves = [x.clone().requires_grad_(), torch.tensor(0.05, requires_grad=True)]
        y = learned_fake_quantize(*leaves, -31, 31, 0.01)
        y.backward(grad)
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    native.use_compiled("auto")
    for a, b in zip(results[0], results[-1], strict=True):
        assert_same_bits(a, b)


def test_a_nan_shows_in_the_gradient_of_the_step(mode: bool) -> None:
    x = torch.tensor([1.0, math.nan, 0.2], requires_grad=True)
    s = torch.tensor(0.5, requires_grad=True)
    learned_fake_quantize(x, s, -7, 7, 1.0).sum().backward()
    assert s.grad.isnan()
    assert x.grad.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("step", [0.0, -0.3])
def test_a_step_driven_below_zero_gives_finite_values_and_gradients(mode: bool, step: float) -> None:
    x = torch.randn(100, requires_grad=True)
    s = torch.tensor(step, requires_grad=True)
    y = learned_fake_quantize(x, s, -7, 7, 1.0)
    (y - x.detach()).square().sum().backward()
    assert bool(y.isfinite().all())
    assert s.grad < 0  # towards a larger step


def test_layouts_other_than_contiguous_are_taken(mode: bool) -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    s = torch.tensor(0.2, requires_grad=True)
    grad = torch.randn(2, 3, 4, 5)
    results = torch.autograd.grad(learned_fake_quantize(x, s, -3, 3, 1.0), [x, s], grad)
    plain = x.detach().contiguous().requires_grad_()
    expected = torch.autograd.grad(learned_fake_quantize(plain, s, -3, 3, 1.0), [plain, s], grad)
    assert torch.equal(results[0], expected[0])
    torch.testing.assert_close(results[1], expected[1])


def test_scales_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CompressionError, match=r"expected shape \(\) or \(3,\), got \(4,\)"):
        learned_fake_quantize(torch.randn(3, 4), torch.ones(4), -3, 3, 1.0)


@pytest.mark.parametrize(("offset", "expected"), [(0.0, 0), (-1.1, 2), (5.0, 0), (-100.0, 15)])
def test_the_zero_point_is_an_integer_of_the_range(offset: float, expected: int) -> None:
    assert learned_zero_point(torch.tensor(offset), torch.tensor(0.5), 0, 15).item() == expected


def test_the_gradient_scale_is_the_papers() -> None:
    assert gradient_scale(400, 7) == pytest.approx(1 / math.sqrt(400 * 7))
