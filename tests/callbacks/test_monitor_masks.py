"""What the monitor says of the masks: how much changed, and which channels are gone."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from lightning_modules import PlainModule, loader, quiet_trainer

from lightning_compress.callbacks import CompressedExport, CompressionMonitor, GradualMagnitudePruning


class Masks(Callback):
    """Reads, at the end of each step, what was logged and which weights are zero."""

    def __init__(self) -> None:
        self.zero: list[torch.Tensor] = []
        self.churn: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        self.zero.append(torch.cat([p.detach().flatten() == 0 for p in pl_module.parameters() if p.ndim > 1]))
        self.churn.append(float(trainer.callback_metrics.get("compress/churn", 0.0)))


def test_churn_is_the_share_of_the_weights_whose_mask_changed_at_the_last_update() -> None:
    pruning = GradualMagnitudePruning(0.8, start=2, end=10, every=2)
    masks, monitor = Masks(), CompressionMonitor(print_phases=False)
    trainer = quiet_trainer(callbacks=[pruning, monitor, masks], log_every_n_steps=1)
    trainer.fit(PlainModule(), loader(), loader(2))
    # An update at the end of batch n is logged in batch n + 1.
    changed = [float((a != b).double().mean()) for a, b in zip(masks.zero[:9:2], masks.zero[1:10:2], strict=True)]
    assert min(changed[1:]) > 0
    logged = masks.churn[2:11:2]
    torch.testing.assert_close(torch.tensor(logged), torch.tensor(changed), rtol=0, atol=1e-6)


def test_dead_channels_are_logged_and_reported(tmp_path: Path) -> None:
    module = PlainModule()
    with torch.no_grad():
        module.net.block1.conv1.weight[[0, 3]] = 0
        module.net.block2.conv2.weight[7] = 0
    export = CompressedExport(tmp_path, formats=["packed"], latency=False)
    trainer = quiet_trainer(callbacks=[GradualMagnitudePruning(freeze=True), CompressionMonitor(), export])
    trainer.fit(module, loader(), loader(2))
    assert trainer.callback_metrics["compress/dead_channels"] == 3
    assert export.report is not None
    found = {row["name"]: row["dead_channels"] for row in export.report["layers"] if row["dead_channels"]}
    assert found == {"net.block1.conv1.weight": 2, "net.block2.conv2.weight": 1}
    page = (tmp_path / "report.md").read_text()
    assert "3 output channels have no weight left, 2 of them in net.block1.conv1.weight." in page
