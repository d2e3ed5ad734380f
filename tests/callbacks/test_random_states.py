"""A resumed run draws what the run would have drawn, and says of itself what it cannot give back."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning_modules import quiet_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import (
    CompressedCheckpoint,
    CompressedExport,
    CompressionError,
    GradualMagnitudePruning,
    QuantizationAwareTraining,
)
from lightning_compress.callbacks.checkpoints.random_states import random_states
from lightning_compress.callbacks.checkpoints.resume_limits import resume_limits

pytestmark = pytest.mark.filterwarnings("ignore:.*(many workers|not empty|Checkpoint directory)")


class Drawing(L.LightningModule):
    """Draws in every step: dropout, and noise of NumPy and of Python."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        noise = 0.1 * (np.random.rand() + random.random())
        return nn.functional.cross_entropy(self.net(batch[0] + noise), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def data() -> TensorDataset:
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > 0).long())


def shuffled() -> DataLoader[Any]:
    return DataLoader(data(), batch_size=8, shuffle=True)


class Stateful(DataLoader[Any]):
    """Keeps its place in an epoch."""

    place = 0

    def __iter__(self) -> Iterator[Any]:
        first, self.place = self.place, 0
        for index, batch in enumerate(super().__iter__()):
            if index >= first:
                self.place = (index + 1) % len(self)
                yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


def trained(folder: Path, loader: DataLoader[Any], ckpt: Path | None = None, **saving: Any) -> dict[str, torch.Tensor]:
    L.seed_everything(7, verbose=False)
    module = Drawing()
    pruning = GradualMagnitudePruning(0.5, start=1, end=14, every=2, regrow="random")
    callbacks = [
        pruning,
        QuantizationAwareTraining(start=4),
        CompressedCheckpoint(folder, "{step}", save_top_k=-1, **saving),
    ]
    trainer = quiet_trainer(max_epochs=4, callbacks=callbacks, enable_checkpointing=True)
    if ckpt is not None:
        torch.rand(13)  # a new process is somewhere else
    trainer.fit(module, loader, ckpt_path=ckpt, weights_only=ckpt is not None)
    return module.state_dict()


@pytest.mark.parametrize(
    ("make", "saving", "step"),
    [(shuffled, {}, 8), (lambda: Stateful(data(), batch_size=8), {"every_n_train_steps": 1}, 6)],
    ids=["from the end of an epoch", "from inside of one"],
)
def test_dropout_and_the_order_of_data_are_those_of_the_run(
    make: Callable[[], DataLoader[Any]], saving: dict[str, Any], step: int, tmp_path: Path
) -> None:
    whole = trained(tmp_path / "whole", make(), **saving)
    resumed = trained(tmp_path / "parts", make(), tmp_path / "whole" / f"step={step}.ckpt", **saving)
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


def test_states_are_tensors_and_primitives(tmp_path: Path) -> None:
    torch.save(random_states(), tmp_path / "states.pt")
    torch.load(tmp_path / "states.pt", weights_only=True)


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (lambda folder: [], {}, []),
        (lambda folder: [CompressedCheckpoint(folder)], {}, []),
        (lambda folder: [ModelCheckpoint(folder)], {}, ["Dropout"]),
        (lambda folder: [ModelCheckpoint(folder, save_weights_only=True)], {}, []),
        (
            lambda folder: [CompressedCheckpoint(folder), StochasticWeightAveraging(1e-3)],
            {},
            ["StochasticWeightAveraging"],
        ),
        (
            lambda folder: [CompressedCheckpoint(folder, save_on_exception=True)],
            {"accumulate_grad_batches": 4},
            ["up to 3 batches", "does not save its position"],
        ),
        (lambda folder: [CompressedCheckpoint(folder, every_n_train_steps=3)], {}, ["does not save its position"]),
    ],
)
def test_a_run_says_what_a_resume_would_not_give_back(
    make: Callable[[Path], list[Any]], settings: dict[str, Any], said: list[str], tmp_path: Path
) -> None:
    # Made here: a checkpoint callback resolves its directory when it is made.
    callbacks = make(tmp_path)
    found: list[str] = []

    class Look(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            found.extend(resume_limits(trainer, pl_module))

    trainer = quiet_trainer(
        max_epochs=1, callbacks=[*callbacks, Look()], enable_checkpointing=bool(callbacks), **settings
    )
    trainer.fit(Drawing(), shuffled())
    assert len(found) == len(said)
    assert all(part in line for part, line in zip(said, found, strict=True))


def test_a_checkpoint_of_weights_alone_says_that_it_is_evaluated_in_float(tmp_path: Path) -> None:
    class Evaluated(Drawing):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    trainer = quiet_trainer(max_epochs=1, callbacks=[QuantizationAwareTraining(start=1)])
    trainer.fit(Evaluated(), shuffled())
    paths = tmp_path / "weights.ckpt", tmp_path / "whole.ckpt"
    for path, weights_only in zip(paths, (True, False), strict=True):
        trainer.save_checkpoint(path, weights_only=weights_only)
    for path, says in zip(paths, (True, False), strict=True):
        again = quiet_trainer(callbacks=[QuantizationAwareTraining(start=1)])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            again.validate(Evaluated(), shuffled(), ckpt_path=path, weights_only=True, verbose=False)
        assert any("runs in float here" in str(item.message) for item in caught) is says


def test_a_validation_loader_without_a_batch_is_refused_before_the_first_step(tmp_path: Path) -> None:
    class Evaluated(Drawing):
        steps = 0

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            Evaluated.steps += 1
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    empty = DataLoader(shuffled().dataset, batch_size=64, drop_last=True)
    trainer = quiet_trainer(max_epochs=1, callbacks=[CompressedExport(tmp_path / "out")])
    with pytest.raises(CompressionError, match="the val data has no batch"):
        trainer.fit(Evaluated(), shuffled(), empty)
    trainer = quiet_trainer(max_epochs=1, limit_val_batches=0, callbacks=[CompressedExport(tmp_path / "out")])
    with pytest.raises(CompressionError, match=r"fit\(\) was given none, or limit_val_batches is 0"):
        trainer.fit(Evaluated(), shuffled(), shuffled())
    assert Evaluated.steps == 0
