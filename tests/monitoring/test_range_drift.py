from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import Mlp

from lightning_compress.monitoring.range_drift import drifts, read_ranges
from lightning_compress.quantization import find, prepare


@pytest.mark.parametrize("scheme", ["affine", "symmetric"])
@pytest.mark.parametrize("bits", [3, 8])
def test_the_width_of_a_range_is_that_of_the_values_it_has_seen(scheme: str, bits: int) -> None:
    model = prepare(Mlp(), activation_bits=bits, activation_scheme=scheme, example_inputs=torch.zeros(1, 12))
    x = torch.randn(16, 12)
    model.train()(x)
    found = read_ranges(find(model))
    low, high = np.minimum(x.numpy().min(), 0), np.maximum(x.numpy().max(), 0)
    expected = high - low if scheme == "affine" else 2 * max(-low, high)
    assert next(iter(found.widths.values())) == pytest.approx(expected, rel=1e-6)
    assert set(found.nonfinite.values()) == {0}


def test_ranges_that_have_seen_nothing_are_not_read() -> None:
    found = read_ranges(find(prepare(Mlp(), example_inputs=torch.zeros(1, 12))))
    assert (found.widths, found.nonfinite) == ({}, {})


def test_other_bits_over_the_same_range_are_no_drift() -> None:
    model = prepare(Mlp(), first_last_bits=None, example_inputs=torch.zeros(1, 12))
    model.train()(torch.randn(16, 12))
    before = read_ranges(find(model)).widths
    find(model).set_bits(4, 4)
    assert drifts(before, read_ranges(find(model)).widths) == pytest.approx([0.0] * len(before), abs=1e-6)
