"""Learned ranges of activations, which keep six bits a value for backward."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from kernel_modes import MODES, assert_same_bits
from lsq_paper import paper

from lightning_compress.quantization.fake_quantize import cpu as native
from lightning_compress.quantization.fake_quantize import functional as kernels
from lightning_compress.quantization.fake_quantize.lsq import learned_activation


@pytest.fixture(params=MODES, ids=lambda mode: "compiled" if mode else "eager")
def mode(request: pytest.FixtureRequest) -> Iterator[bool]:
    native.use_compiled(request.param)
    yield request.param
    native.use_compiled("auto")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_gradient_of_the_step_is_the_papers_to_half_a_kept_step(mode: bool, bits: int) -> None:
    qn, qp = 2 ** (bits - 1), 2 ** (bits - 1) - 1
    x, grad, s = torch.randn(20_003) * 2, torch.randn(20_003), torch.tensor(0.31)
    ours = [x.clone().requires_grad_(), s.clone().requires_grad_()]
    learned_activation(*ours, None, -qn, qp, 0.02).backward(grad)
    theirs = [x.double().requires_grad_(), s.double().requires_grad_()]
    paper(*theirs, qn, qp, 0.02).backward(grad.double())
    torch.testing.assert_close(ours[0].grad, theirs[0].grad.float())
    bound = 0.02 * float(grad.abs().sum()) / 116
    assert abs(float(ours[1].grad) - float(theirs[1].grad)) <= bound
    # Roundings cancel: what is left is a small part of the bound.
    assert abs(float(ours[1].grad) - float(theirs[1].grad)) <= bound / 20


def test_the_offset_learns_as_in_lsq_plus(mode: bool) -> None:
    # An offset on the grid: there our rounded zero point and the paper's free offset are the same function.
    x, grad = torch.randn(5000) * 2, torch.randn(5000)
    s, beta = torch.tensor(0.25), torch.tensor(-0.75)
    ours = [t.clone().requires_grad_() for t in (x, s, beta)]
    g = 0.05
    learned_activation(*ours, 0, 15, g).backward(grad)
    theirs = [t.double().requires_grad_() for t in (x, s, beta)]
    paper(theirs[0], theirs[1], 0, 15, g, theirs[2]).backward(grad.double())
    torch.testing.assert_close(ours[0].grad, theirs[0].grad.float())
    torch.testing.assert_close(ours[2].grad, theirs[2].grad.float(), rtol=1e-4, atol=1e-5)
    bound = g * float(grad.abs().sum()) / 116
    assert abs(float(ours[1].grad) - float(theirs[1].grad)) <= bound / 20


@pytest.mark.parametrize("offset", [None, -1.45])
@pytest.mark.parametrize("clip", [None, (0.0, math.inf), (0.0, 6.0)])
def test_values_and_gradients_are_those_of_the_activation_function_and_the_papers_quantizer(
    mode: bool, offset: float | None, clip: tuple[float, float] | None
) -> None:
    x, grad = torch.randn(5_001) * 4, torch.randn(5_001) + 1
    low, high = (-15, 15) if offset is None else (0, 31)
    leaves = [x.clone().requires_grad_(), torch.tensor(0.29, requires_grad=True)]  # 6 lies between two steps
    leaves += [] if offset is None else [torch.tensor(offset, requires_grad=True)]
    y = learned_activation(*leaves, *([None] if offset is None else []), low, high, 0.1, clip=clip)
    y.backward(grad)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    before = exact[0] if clip is None else torch.nn.functional.hardtanh(exact[0], *clip)
    # -1.45 is the offset of zero point 5 exactly, so rounding it changes nothing.
    paper(before, exact[1], -low, high, 0.1, *exact[2:]).backward(grad.double())
    zero_point = torch.tensor(0.0 if offset is None else 5.0)
    plain = x if clip is None else x.clamp(*clip)
    assert torch.equal(y, kernels.fake_quantize(plain, leaves[1].detach(), zero_point, low, high))
    torch.testing.assert_close(leaves[0].grad, exact[0].grad.float())
    for a, b in zip(leaves[1:], exact[1:], strict=True):
        # A twentieth of the bound: roundings cancel, a wrong slope at an end would not.
        torch.testing.assert_close(a.grad, b.grad.float(), rtol=0, atol=0.1 * float(grad.abs().sum()) / 116 / 20)


@pytest.mark.parametrize(("scale", "offset"), [(-0.3, -0.2), (0.5, 1e30), (0.5, -1e30), (1e-30, -2.0)])
def test_extreme_scales_and_offsets_are_alike_in_both_modes(scale: float, offset: float) -> None:
    x, grad = torch.randn(3_000), torch.randn(3_000)
    results = []
    for mode in MODES:
        native.use_compiled(mode)
        leaves = [x.clone().requires_grad_(), *(torch.tensor(v, requires_grad=True) for v in (scale, offset))]
        y = learned_activation(*leaves, 0, 15, 0.01)
        y.backward(grad)
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    native.use_compiled("auto")
    for a, b in zip(results[0], results[-1], strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 39, 41, 257, 16_001, 16_385, 50_001])
@pytest.mark.parametrize("clip", [None, (0.0, 6.0)])
def test_compiled_and_eager_learn_to_the_bit_alike(
    dtype: torch.dtype, count: int, clip: tuple[float, float] | None
) -> None:
    x = (torch.randn(count) * 3).to(dtype)
    extremes = torch.tensor([math.inf, math.nan, -math.inf, 0.75, -0.75])[:count]
    x[: len(extremes)] = extremes
    grad = torch.randn(count).to(dtype)
    results = []
    for mode in MODES:
        native.use_compiled(mode)
        leaves = [x.clone().requires_grad_(), *(torch.tensor(v, requires_grad=True) for v in (0.05, -1.52))]
        y = learned_activation(*leaves, 0, 63, 0.01, clip=clip)
        y.backward(grad)
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    native.use_compiled("auto")
    for a, b in zip(results[0], results[-1], strict=True):
        assert_same_bits(a, b)


def test_channels_last_and_transposed_tensors_keep_places_and_gradients(mode: bool) -> None:
    base = torch.randn(2, 5, 6, 7)
    grad = torch.randn(2, 5, 6, 7)
    found = []
    for x in (base, base.to(memory_format=torch.channels_last), base.transpose(1, 3).contiguous().transpose(1, 3)):
        leaf, s = x.clone().requires_grad_(), torch.tensor(0.2, requires_grad=True)
        y = learned_activation(leaf, s, None, -3, 3, 1.0)
        y.backward(grad)
        found.append((y.detach(), leaf.grad, s.grad))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_six_bits_a_value_are_kept(mode: bool) -> None:
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x = torch.randn(65_536, requires_grad=True)
        learned_activation(x, torch.tensor(0.2, requires_grad=True), None, -3, 3, 1.0)
    # Five values share four bytes; plain PyTorch keeps a byte for each.
    assert sum(kept) <= x.numel() * (4 / 5 if mode else 1) + 64
