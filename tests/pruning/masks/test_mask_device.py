"""The masks' kernel, run by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from lightning_compress.pruning.masks import apply_masks
from lightning_compress.pruning.masks import device as mask_device


def test_one_operator_clears_what_is_pruned_in_all_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, dtypes = [(3,), (2, 5, 4, 4), (4099,)], [torch.float32, torch.float32, torch.bfloat16]
    tensors = [torch.randn(shape).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    tensors[1] = tensors[1].contiguous(memory_format=torch.channels_last)
    masks = [torch.empty_like(tensor, dtype=torch.bool).bernoulli_(0.5) for tensor in tensors]
    for tensor, mask in zip(tensors, masks, strict=True):
        tensor[~mask] = torch.tensor(float("nan"), dtype=tensor.dtype)
    wanted, versions = [tensor.clone() for tensor in tensors], [tensor._version for tensor in tensors]
    apply_masks(wanted, masks)
    monkeypatch.setattr(mask_device, "served", lambda tensor: True)
    assert mask_device.mask_on_device(tensors, masks) == []
    assert all(torch.equal(a, b) for a, b in zip(tensors, wanted, strict=True))
    assert all(tensor._version > before for tensor, before in zip(tensors, versions, strict=True))
    assert not any(tensor.view(torch.int16).min() == -(2**15) for tensor in tensors[2:])


def test_tensors_and_masks_in_another_order_of_memory_are_left() -> None:
    tensor = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mask_device, "served", lambda tensor: True)
        assert mask_device.mask_on_device([tensor], [torch.ones(2, 3, 4, 4, dtype=torch.bool)]) == [0]
