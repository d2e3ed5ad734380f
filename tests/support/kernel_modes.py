"""The ways in which the kernels of this machine can run, and equality of bits between them."""

from __future__ import annotations

import torch

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.fake_quantize import cpu as native


def compiler_at_hand() -> bool:
    try:
        native.use_compiled(True)
    except CompressionError:
        return False
    native.use_compiled("auto")
    return True


MODES = [False, True] if compiler_at_hand() else [False]


def assert_same_bits(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.dtype == b.dtype
    assert torch.equal(a.isnan(), b.isnan())
    whole = torch.int32 if a.element_size() == 4 else torch.int16
    assert torch.equal(a.nan_to_num(0.0).view(whole), b.nan_to_num(0.0).view(whole))
