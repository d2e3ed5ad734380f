from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from networks import Mlp
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_compress import CompressionError
from lightning_compress.delivery.evaluation import EvaluationData, duplicate, evaluate

X, Y = torch.randn(20, 12), torch.randint(5, (20,))


def loader() -> DataLoader:
    return DataLoader(TensorDataset(X, Y), batch_size=8)


class Evaluated(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(5, average="micro")
        self.built = 0
        self.build()

    def build(self) -> None:
        self.net = Mlp()
        self.built += 1

    def setup(self, stage: str) -> None:
        self.build()

    def configure_model(self) -> None:
        self.build()

    def prepare_data(self) -> None:
        raise AssertionError("prepared again")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.accuracy(self.net(batch[0]), batch[1])
        self.log("acc", self.accuracy, on_step=False, on_epoch=True)
        self.logger.experiment.add_histogram("scores", self.net(batch[0]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)


def accuracy(net: nn.Module) -> float:
    with torch.no_grad():
        return (net(X).argmax(1) == Y).float().mean().item()


@pytest.mark.parametrize("split", ["val", "test"])
def test_what_the_steps_log_is_that_of_the_trained_weights(split):
    module = Evaluated()
    found = evaluate(duplicate(module), EvaluationData(split, loader()))
    assert found["acc"] == pytest.approx(accuracy(module.net))


def test_layers_are_not_built_again_for_validation():
    copied = duplicate(Evaluated())
    evaluate(copied, EvaluationData("val", loader()))
    assert copied.built == 1


def test_the_replaced_forward_is_what_runs():
    answers = {tuple(x.tolist()): y for x, y in zip(X, nn.functional.one_hot(Y, 5).float(), strict=True)}

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([answers[tuple(row.tolist())] for row in x])

    found = evaluate(duplicate(Evaluated()), EvaluationData("val", loader()), entry="net", forward=forward)
    assert found == {"acc": 1.0}


def test_a_limit_in_batches_is_kept():
    seen: list[Any] = []
    evaluate(duplicate(Evaluated()), EvaluationData("val", loader(), limit=2), on_batch=seen.append)
    assert [len(batch[1]) for batch in seen] == [8, 8]


def test_nothing_waits_for_other_processes():
    # Lightning makes a process group around a prepare_data that is overridden, and metrics gather from all ranks.
    class Data(L.LightningDataModule):
        def prepare_data(self) -> None:
            raise AssertionError("prepared again")

        def val_dataloader(self) -> DataLoader:
            return loader()

    class Look(Evaluated):
        def on_validation_start(self) -> None:
            assert not is_overridden("prepare_data", self)
            assert not is_overridden("prepare_data", self.trainer.datamodule, L.LightningDataModule)
            assert not self.accuracy.distributed_available_fn()

    assert evaluate(duplicate(Look()), EvaluationData("val", datamodule=Data()))


def test_a_sharded_dataloader_is_evaluated_whole():
    sampler = DistributedSampler(loader().dataset, num_replicas=2, rank=0)
    sharded = DataLoader(loader().dataset, batch_size=8, sampler=sampler)

    class Seen(L.Trainer):
        val_dataloaders = sharded  # type: ignore[assignment]

    run = Seen(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    run.strategy._lightning_module = Evaluated()
    data = EvaluationData.of(run, "val")
    assert sum(len(y) for _, y in data.dataloaders) == 20


def test_a_loss_left_on_the_module_does_not_stop_its_copy():
    module = Evaluated()
    module.left = {"losses": [module.net(X).sum()]}
    copied = duplicate(module)
    assert torch.equal(copied.left["losses"][0], module.left["losses"][0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_copy_of_a_module_in_another_precision_is_in_float32(dtype):
    assert {p.dtype for p in duplicate(Evaluated().to(dtype)).parameters()} == {torch.float32}


def test_a_float32_module_keeps_its_parts_in_float64():
    module = Evaluated()
    module.clock = nn.Linear(2, 2).double()
    assert duplicate(module).clock.weight.dtype == torch.float64


def test_a_copy_has_no_trainer_and_shares_no_weights():
    module = Evaluated()
    copied = duplicate(module)
    assert copied._trainer is None
    assert copied.net[1].weight.data_ptr() != module.net[1].weight.data_ptr()


def test_an_evaluation_that_never_calls_the_replaced_module_is_refused():
    module = Evaluated()
    module.spare = Mlp()
    with pytest.raises(CompressionError, match=r"validation_step never called spare\(\.\.\.\)"):
        evaluate(duplicate(module), EvaluationData("val", loader()), entry="spare", forward=lambda x: x)
