"""Losses of training steps that commands take outside of a Trainer."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from lightning_compress.apps.training_batches import step_loss


class Named(L.LightningModule):
    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return batch.sum() + batch_idx


class OtherName(L.LightningModule):
    def training_step(self, batch: torch.Tensor, i: int) -> torch.Tensor:  # type: ignore[override]
        return batch.sum() + i


class BatchAlone(L.LightningModule):
    def training_step(self, batch: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return batch.sum()


@pytest.mark.parametrize(("kind", "expected"), [(Named, 7.0), (OtherName, 7.0), (BatchAlone, 3.0)])
def test_the_index_is_the_second_argument_whatever_its_name(kind: type[L.LightningModule], expected: float) -> None:
    assert step_loss(kind(), torch.ones(3), 4, "calibrate").item() == expected
