from __future__ import annotations

import copy
import math
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress.errors import CompressionError
from lightning_compress.models import Classifier


def trainer(**options: Any) -> L.Trainer:
    options = {"max_epochs": 1, "accelerator": "cpu", **options}
    return L.Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def loader(labels: list[int], batch_size: int = 4) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(len(labels), 6), torch.tensor(labels)), batch_size)


class Rates(L.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


class Says(nn.Module):
    """Always the same class, whatever comes in."""

    def __init__(self, label: int) -> None:
        super().__init__()
        self.label, self.unused = label, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), 3)
        logits[:, self.label] = 5.0
        return logits + self.unused


def test_accuracy_is_over_samples_and_not_over_batches() -> None:
    module = Classifier(Says(1), num_classes=3)
    found = trainer().test(module, loader([1, 1, 1, 1, 0]), verbose=False)[0]
    assert found["test/acc"] == pytest.approx(4 / 5)
    right, wrong = (math.log(math.exp(5) + 2) - value for value in (5, 0))
    assert found["test/loss"] == pytest.approx((4 * right + wrong) / 5, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_loss_of_two_ranks_is_that_of_all_samples() -> None:
    module, data = Classifier(Says(1), num_classes=3), loader([1, 0] * 4)  # each rank has one of the labels
    found = [
        trainer(devices=n, strategy=s).test(module, data, verbose=False)[0] for n, s in ((1, "auto"), (2, "ddp_spawn"))
    ]
    assert found[1] == pytest.approx(found[0])


def test_the_rate_warms_up_and_then_follows_a_cosine_by_optimizer_step() -> None:
    rates = Rates()
    module = Classifier(nn.Linear(6, 3), num_classes=3, lr=0.1, warmup=0.2, optimizer="sgd")
    trainer(max_epochs=2, callbacks=[rates], accumulate_grad_batches=2).fit(module, loader([0] * 40))
    cosine = [0.05 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    expected = [min(1.0, (step + 1) / 2) * value for step, value in enumerate(cosine)]
    assert rates.seen == pytest.approx(expected)


def test_a_constant_rate_serves_a_run_of_unknown_length() -> None:
    module = Classifier(nn.Linear(6, 3), num_classes=3, scheduler="constant")
    fit = trainer(max_epochs=-1, max_time={"seconds": 1}, limit_train_batches=2)
    fit.fit(module, loader([0] * 8))
    assert fit.global_step > 0
    with pytest.raises(CompressionError, match=r"model\.scheduler: 'cosine' needs a run of known length"):
        trainer(max_epochs=-1).fit(Classifier(nn.Linear(6, 3), num_classes=3), loader([0] * 8))


def test_decay_is_for_weights_and_not_for_biases_and_norms() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    module = Classifier(net, num_classes=3, weight_decay=0.3)
    fit = trainer(limit_train_batches=1)
    fit.fit(module, loader([0] * 4))
    decay = {id(p): group["weight_decay"] for group in fit.optimizers[0].param_groups for p in group["params"]}
    assert {name for name, p in module.named_parameters() if decay[id(p)] == 0.3} == {"net.0.weight", "net.2.weight"}
    assert len(decay) == len(list(module.parameters()))


def test_checkpoints_hold_the_network_alone() -> None:
    module = Classifier(nn.Linear(6, 3), num_classes=3, input_shape=(6,))
    assert set(module.state_dict()) == {"net.weight", "net.bias"}
    assert module.example_input_array.shape == (1, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, r"model\.optimizer: expected one of sgd, adamw, got 'adam'"),
        ({"scheduler": "step"}, r"model\.scheduler: expected one of cosine, constant, got 'step'"),
        ({"lr": -0.1}, r"model\.lr: expected a finite number, at least 0, got -0\.1"),
        ({"weight_decay": math.nan}, r"model\.weight_decay"),
        ({"warmup": 1.0}, r"model\.warmup: expected a share in \[0, 1\), got 1\.0"),
        ({"label_smoothing": 2.0}, r"model\.label_smoothing"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        Classifier(nn.Linear(6, 3), num_classes=3, **options)


def test_channels_last_keeps_the_numbers_and_the_layout() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    x = torch.randn(2, 3, 8, 8)
    plain = Classifier(copy.deepcopy(net), num_classes=3)
    last = Classifier(net, num_classes=3, channels_last=True)
    assert last.net[0](x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x), plain(x))
