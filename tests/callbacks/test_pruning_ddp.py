"""Pruning on two ranks."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress.callbacks.pruning import GradualMagnitudePruning


class Module(L.LightningModule):
    def __init__(self, folder):
        super().__init__()
        self.net = nn.Linear(8, 8)
        self.folder = folder

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def on_train_end(self):
        callback = self.trainer.callbacks[0]
        torch.save(callback.pruner.masks, f"{self.folder}/{self.global_rank}.pt")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


@pytest.mark.filterwarnings("ignore")
def test_masks_are_equal_on_every_rank(tmp_path):
    # Movement scores, random growth and magnitudes: everything that could differ between ranks.
    callback = GradualMagnitudePruning(0.75, start=1, end=6, every=1, criterion="movement", regrow="random")
    L.Trainer(
        max_steps=8,
        accelerator="cpu",
        devices=2,
        strategy="ddp_spawn",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[callback],
        default_root_dir=tmp_path,
    ).fit(Module(str(tmp_path)), DataLoader(TensorDataset(torch.randn(64, 8)), batch_size=4))
    masks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True)["net.weight"] for rank in (0, 1)]
    assert torch.equal(*masks)
    assert int(masks[0].sum()) == 16
