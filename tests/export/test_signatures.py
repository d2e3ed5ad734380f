"""Results that hold more than a file gives."""

from __future__ import annotations

import torch

from lightning_compress.export.signatures import completed


def test_what_a_file_does_not_give_is_not_a_number() -> None:
    logits, loss = torch.randn(2, 3), torch.tensor(0.5)
    by_name = completed({"logits": logits}, {"loss": loss, "logits": logits + 1, "name": "x"})
    assert torch.isnan(by_name["loss"])
    assert torch.equal(by_name["logits"], logits)
    assert by_name["name"] == "x"
    by_place = completed((logits,), (loss, logits + 1))
    assert torch.isnan(by_place[0])
    assert torch.equal(by_place[1], logits)
    alone = completed(logits, {"loss": loss, "logits": logits + 1})
    assert torch.isnan(alone["loss"])
    assert torch.equal(alone["logits"], logits)
