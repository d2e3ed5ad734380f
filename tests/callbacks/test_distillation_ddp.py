"""Distillation on two ranks."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning_modules import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import KnowledgeDistillation
from lightning_compress.distillation import Features, Logits


class TwoHeads(L.LightningModule):
    """The step's own loss does not reach ``aside``; distillation does."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.body, self.head, self.aside = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.body(x).relu()
        self.aside(hidden)
        return self.head(hidden)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        # All ranks load the same batches, and each takes its share.
        x, y = (part[self.global_rank :: self.trainer.world_size] for part in batch)
        return F.cross_entropy(self(x), y)

    def on_train_end(self) -> None:
        if self.folder is not None:
            teacher = self.trainer.callbacks[0].teacher.state_dict()
            torch.save((self.state_dict(), teacher), self.folder / f"{self.global_rank}.pt")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TeacherOfItsRank(KnowledgeDistillation):
    """Each process made a teacher of its own, as a script without a seed does."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        torch.manual_seed(trainer.global_rank)
        self._given = TwoHeads()
        super().setup(trainer, pl_module, stage)


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_train_as_one_on_both_batches_with_the_teacher_of_the_first(tmp_path: Path) -> None:
    data = DataLoader(TensorDataset(torch.randn(32, 6), torch.randint(0, 4, (32,))), batch_size=8)
    start = TwoHeads().state_dict()
    losses = [Logits(), Features(["aside"])]
    module = TwoHeads(tmp_path)
    module.load_state_dict(start)
    # Without the distillation loss inside the wrapper, DDP would take the parameters of `aside` for unused.
    quiet_trainer(
        callbacks=[TeacherOfItsRank(losses=losses)],
        max_epochs=1,
        devices=2,
        strategy="ddp_spawn_find_unused_parameters_true",
        use_distributed_sampler=False,
    ).fit(module, data)
    (one, teacher), (two, other) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert all(torch.equal(value, other[name]) for name, value in teacher.items())

    alone, given = TwoHeads(), TwoHeads()
    alone.load_state_dict(start)
    given.load_state_dict(teacher)
    quiet_trainer(callbacks=[KnowledgeDistillation(given, losses)], max_epochs=1).fit(alone, data)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(one[name], value)
    assert not torch.equal(one["aside.weight"], start["aside.weight"])
