"""Learned ranges on two ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning_modules import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import QuantizationAwareTraining


class Module(L.LightningModule):
    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.folder = folder

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def on_train_end(self) -> None:
        if self.folder is not None:
            (callback,) = (c for c in self.trainer.callbacks if isinstance(c, QuantizationAwareTraining))
            torch.save([p.detach() for p in callback.quantization.parameters()], self.folder / f"{self.global_rank}.pt")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_learn_the_ranges_that_one_process_learns_from_both_batches(tmp_path: Path) -> None:
    # Weights alone: their ranges begin at the same place, whatever a rank's first batch is.
    settings: dict[str, Any] = {"weight_bits": 4, "activation_bits": None, "range": "learned", "range_lr": 0.05}
    x, y, start = torch.randn(64, 6), torch.randint(0, 4, (64,)), Module().state_dict()
    for processes in (2, 1):
        module = Module(tmp_path / str(processes))
        module.folder.mkdir()
        module.load_state_dict(start)
        # One batch holds all samples, so that the order in which ranks share them does not matter.
        trainer = quiet_trainer(
            callbacks=[QuantizationAwareTraining(**settings)],
            max_epochs=6,
            devices=processes,
            strategy="ddp_spawn" if processes == 2 else "auto",
        )
        trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=64 // processes))
    (alone,) = (torch.load(path) for path in (tmp_path / "1").iterdir())
    one, two = (torch.load(path) for path in (tmp_path / "2").iterdir())
    assert len(alone) == 2
    for expected, first, second in zip(alone, one, two, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)
