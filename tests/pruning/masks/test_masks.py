"""Applying and packing masks."""

import numpy as np
import pytest
import torch

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.compile_cpp import CompiledSource
from lightning_compress.pruning.masks import apply_masks, new_mask, pack, unpack
from lightning_compress.pruning.masks import cpu as kernel

DTYPES = {torch.float32: torch.int32, torch.float64: torch.int64, torch.bfloat16: torch.int16}
DTYPES[torch.float16] = torch.int16


@pytest.fixture(params=["compiled", "plain"])
def way(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(kernel, "_library", lambda: None)
    elif not kernel.available():
        pytest.fail("these tests need a C compiler to compare both ways")
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5, 7), (70000,)])
def test_kept_entries_keep_every_bit_and_pruned_ones_become_plus_zero(way, dtype, shape):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype)
    flat = weight.view(-1)
    for position, value in enumerate([float("nan"), float("inf"), -float("inf"), -0.0][: flat.numel()]):
        flat[position :: flat.numel() // 4 + 1] = value
    mask = torch.rand(shape, generator=generator) > 0.5
    expected = np.where(mask.numpy(), weight.clone().view(DTYPES[dtype]).numpy(), 0)
    apply_masks([weight], [mask])
    np.testing.assert_array_equal(weight.view(DTYPES[dtype]).numpy(), expected)


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "mixed"])
def test_any_memory_layout_is_masked_right(way, layout):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 6, 3, 3, generator=generator)
    mask = torch.rand(4, 6, 3, 3, generator=generator) > 0.5
    expected = weight * mask
    if layout == "transposed":
        weight = weight.transpose(0, 3).contiguous().transpose(0, 3)
    else:
        weight = weight.contiguous(memory_format=torch.channels_last)
        mask = mask.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else mask
    apply_masks([weight], [mask])
    assert torch.equal(weight, expected)


def test_many_tensors_are_masked_in_one_call(way):
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(n, generator=generator).to(dtype) for n, dtype in zip((5, 9, 2), DTYPES, strict=False)]
    masks = [torch.rand(weight.shape, generator=generator) > 0.5 for weight in weights]
    expected = [weight * mask for weight, mask in zip(weights, masks, strict=True)]
    apply_masks(weights, masks)
    assert all(torch.equal(w, e) for w, e in zip(weights, expected, strict=True))


def test_a_missing_compiler_is_survived(monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    monkeypatch.setattr(kernel, "_LOOP", CompiledSource(kernel._LOOP.path, kernel._declare, name="Masks", without=""))
    weight = torch.ones(3)
    apply_masks([weight], [torch.tensor([True, False, True])])
    assert not kernel.available()
    assert weight.tolist() == [1, 0, 1]


def test_autograd_notices_a_masked_weight():
    weight = torch.ones(3, requires_grad=True)
    loss = (weight * weight).sum()
    apply_masks([weight.detach()], [torch.tensor([True, False, True])])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("shape", [(1,), (8,), (3, 3), (2, 3, 5)])
def test_packed_masks_unpack_to_themselves_at_one_bit_an_entry(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.5
    bits = pack(mask)
    assert bits.dtype == torch.uint8
    assert bits.numel() == -(-mask.numel() // 8)
    assert torch.equal(unpack(bits, shape), mask)


def test_packing_does_not_depend_on_the_memory_layout():
    mask = torch.rand(2, 4, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.5
    assert torch.equal(pack(mask.contiguous(memory_format=torch.channels_last)), pack(mask))


def test_bits_that_do_not_fit_the_shape_are_refused():
    with pytest.raises(CompressionError, match=r"does not fit a weight of shape \[17\]"):
        unpack(pack(torch.ones(16, dtype=torch.bool)), (17,))


def test_a_new_mask_takes_one_byte_an_entry_and_keeps_everything():
    mask = new_mask(torch.nn.Parameter(torch.randn(3, 4)))
    assert mask.all()
    assert mask.element_size() == 1
    assert not mask.requires_grad
