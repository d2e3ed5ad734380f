"""Whether the weights that a fit began with may stand as a dense control."""

from __future__ import annotations

import pytest

from lightning_compress.delivery.dense_baseline import untrained_start


@pytest.mark.parametrize(
    ("start", "trained", "looked_at"),
    [
        ({"val/acc": 0.1}, {"val/acc": 0.95}, (None, "max")),
        ({"val/acc": 0.5}, {"val/acc": 0.8}, (None, "max")),
        ({"val_loss": 2.3}, {"val_loss": 0.3}, (None, "max")),
        ({"val/loss": 2.3, "val/acc": 0.1}, {"val/loss": 2.2, "val/acc": 0.9}, (None, "max")),
        ({"val/score": 9.0}, {"val/score": 3.0}, ("val/score", "min")),
        ({"val/psnr": 5.0}, {"val/psnr": 30.0}, ("val/psnr", "max")),
        ({"elbo_loss": 40.0}, {"elbo_loss": -12.0}, (None, "max")),
    ],
)
def test_a_start_much_worse_than_what_came_out_was_untrained(start, trained, looked_at) -> None:
    why = untrained_start(start, trained, *looked_at)
    assert why is not None
    assert why.startswith(looked_at[0] or next(name for name in trained if "acc" in name or len(trained) == 1))


@pytest.mark.parametrize(
    ("start", "trained", "looked_at"),
    [
        ({"val/acc": 0.92}, {"val/acc": 0.925}, (None, "max")),
        ({"val/acc": 0.92}, {"val/acc": 0.1}, (None, "max")),
        ({"val/acc": 1.0}, {"val/acc": 1.0}, (None, "max")),
        ({"val_loss": 0.30}, {"val_loss": 0.28}, (None, "max")),
        # Nothing says which way is better.
        ({"score": 1.0}, {"score": 9.0}, (None, "max")),
        ({"score": 9.0}, {"score": 1.0}, (None, "max")),
        ({"score": 1.0}, {"score": 9.0}, ("score", "min")),
        ({}, {"val/acc": 0.9}, (None, "max")),
    ],
)
def test_a_trained_start_stays_a_control(start, trained, looked_at) -> None:
    assert untrained_start(start, trained, *looked_at) is None
