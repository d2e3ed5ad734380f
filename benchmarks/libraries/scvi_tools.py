"""scvi-tools: the variational autoencoder of single-cell counts, as its introduction trains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libraries import Trained

REQUIREMENTS = ("scvi-tools",)
LINES = "model.train(..., callbacks=callbacks)"


def train(callbacks: list[Any], folder: Path) -> Trained:
    """Counts that the library makes."""
    import scvi

    scvi.settings.logging_dir = str(folder)
    counts = scvi.data.synthetic_iid(batch_size=96)
    scvi.model.SCVI.setup_anndata(counts, batch_key="batch")
    model = scvi.model.SCVI(counts, n_hidden=32, n_latent=8)
    model.train(
        max_epochs=4,
        batch_size=32,
        accelerator="cpu",
        check_val_every_n_epoch=1,
        enable_progress_bar=False,
        logger=False,
        callbacks=callbacks,
    )
    return Trained(model.module, lambda: (model.is_trained, model.get_latent_representation()))
