"""chemprop: a message-passing network for molecules, as its training tutorial writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libraries import QUIET, Trained

REQUIREMENTS = ("chemprop",)
LINES = "trainer = pl.Trainer(..., callbacks=callbacks)"
SMILES = ["C" * n + tail for n in range(1, 9) for tail in ("O", "N", "C=O", "c1ccccc1")]


def train(callbacks: list[Any], folder: Path) -> Trained:
    """Regression of a number of atoms."""
    from chemprop import data, featurizers, models, nn
    from lightning import pytorch as pl

    points = [data.MoleculeDatapoint.from_smi(smiles, [float(len(smiles))]) for smiles in SMILES]
    featurizer = featurizers.SimpleMoleculeMolGraphFeaturizer()
    training, validation = (data.MoleculeDataset(part, featurizer) for part in (points[:24], points[24:]))
    scaler = training.normalize_targets()
    validation.normalize_targets(scaler)
    head = nn.RegressionFFN(output_transform=nn.UnscaleTransform.from_standard_scaler(scaler), input_dim=64)
    model = models.MPNN(nn.BondMessagePassing(d_h=64), nn.MeanAggregation(), head, metrics=[nn.metrics.RMSE()])
    trainer = pl.Trainer(max_epochs=4, default_root_dir=folder, callbacks=callbacks, **QUIET)
    loaders = [
        data.build_dataloader(part, batch_size=8, num_workers=0, shuffle=shuffle)
        for part, shuffle in ((training, True), (validation, False))
    ]
    trainer.fit(model, *loaders)
    return Trained(model, lambda: trainer.predict(model, loaders[1]))
