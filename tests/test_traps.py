"""Failures that made people leave other libraries; each test is named after what it prevents."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning_modules import PlainModule, loader, quiet_trainer
from torch import nn

from lightning_compress import CompressionError
from lightning_compress.callbacks.monitor import CompressionMonitor
from lightning_compress.callbacks.pruning import GradualMagnitudePruning
from lightning_compress.callbacks.quantization import QuantizationAwareTraining
from lightning_compress.pruning import Pruner
from lightning_compress.quantization import find, prepare


def pruning(**settings: Any) -> GradualMagnitudePruning:
    return GradualMagnitudePruning(**{"final_sparsity": 0.8, "start": 2, "end": 10, "every": 2, **settings})


def zeros(module: nn.Module, names: list[str]) -> float:
    weights = [dict(module.named_parameters())[name] for name in names]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


@pytest.mark.parametrize("order", [0, 1])
def test_pruning_and_quantization_work_in_one_run_in_either_order(order: int) -> None:
    prune, quantize = pruning(), QuantizationAwareTraining(start=6)
    module = PlainModule()
    quiet_trainer(callbacks=[prune, quantize][:: 1 - 2 * order]).fit(module, loader(), loader(2))
    assert prune.pruner is not None
    assert prune.pruner.sparsity() == pytest.approx(0.8, abs=1e-3)
    for name, quantizer in find(module).layers.items():
        integers = quantizer.integers()
        assert (integers[~prune.pruner.masks[name]] == 0).all()


def test_the_logged_sparsity_is_the_share_of_zeros() -> None:
    class Count(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            counted.append(zeros(pl_module, list(prune.pruner.masks)))

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            # Lightning writes it under the number of optimizer steps that were done before this batch.
            logged.append(float(trainer.callback_metrics["compress/sparsity/global"]))

    counted: list[float] = []
    logged: list[float] = []
    prune = pruning()
    monitor = CompressionMonitor()
    quiet_trainer(callbacks=[prune, monitor, Count()], log_every_n_steps=1).fit(PlainModule(), loader())
    assert counted[-1] == pytest.approx(0.8, abs=1e-3)
    assert logged == pytest.approx(counted, abs=1e-6)


def test_sparsity_does_not_compound_over_updates() -> None:
    model = nn.Linear(100, 100)
    pruner = Pruner(model, final_sparsity=0.5, start=0, end=50, every=1, schedule="constant")
    for step in range(60):
        pruner.step(step)
    assert zeros(model, ["weight"]) == 0.5


def test_repeated_updates_do_not_leak_and_the_model_can_be_copied() -> None:
    model = nn.Linear(64, 64)
    pruner = Pruner(model, final_sparsity=0.9, start=0, end=400, every=1)

    def tensors() -> int:
        gc.collect()
        return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

    pruner.step(0)
    before = tensors()
    for step in range(1, 401):
        pruner.step(step)
    assert tensors() <= before
    assert torch.equal(copy.deepcopy(model).weight, model.weight)


def test_a_resumed_run_keeps_its_masks(tmp_path: Path) -> None:
    def run(directory: Path, ckpt_path: str | None = None) -> tuple[PlainModule, GradualMagnitudePruning]:
        torch.manual_seed(1)
        prune = pruning()
        checkpoint = ModelCheckpoint(directory, filename="{step}", every_n_train_steps=8, save_top_k=-1)
        module = PlainModule()
        trainer = quiet_trainer(
            callbacks=[checkpoint, prune, QuantizationAwareTraining(start=4)], enable_checkpointing=True
        )
        trainer.fit(module, loader(), ckpt_path=ckpt_path, weights_only=True)
        return module, prune

    whole, prune = run(tmp_path / "a")
    resumed, again = run(tmp_path / "b", str(tmp_path / "a" / "step=8.ckpt"))
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())
    assert all(torch.equal(mask, again.pruner.masks[name]) for name, mask in prune.pruner.masks.items())


def test_a_buffer_that_ends_in_mask_is_left_alone(tmp_path: Path) -> None:
    class Masked(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("attention_mask", torch.ones(3))

    module = Masked()
    trainer = quiet_trainer(callbacks=[pruning()])
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["attention_mask"], torch.ones(3))
    assert list(state) == list(Masked().state_dict())


def test_biases_and_norms_are_not_pruned_by_default() -> None:
    prune = pruning(final_sparsity=0.9)
    module = PlainModule()
    quiet_trainer(callbacks=[prune]).fit(module, loader())
    assert all(name.endswith("weight") and "bn" not in name for name in prune.pruner.masks)
    assert (module.net.fc.bias != 0).all()
    assert (module.net.block1.bn1.weight != 0).all()


def test_a_sanity_check_does_not_poison_training() -> None:
    module = PlainModule()
    trainer = quiet_trainer(callbacks=[pruning(), QuantizationAwareTraining()], num_sanity_val_steps=2)
    trainer.fit(module, loader(), loader(2))
    assert all(not parameter.is_inference() for parameter in module.parameters())


def test_train_and_eval_mode_and_dropout_stay_the_users() -> None:
    class Dropping(PlainModule):
        def _build(self) -> None:
            super()._build()
            self.net.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 5))

    module = Dropping()
    quiet_trainer(callbacks=[QuantizationAwareTraining()]).fit(module, loader(), loader(2))
    x = torch.randn(4, 3, 8, 8)
    module.train()
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))
    assert module.net.fc[0].p == 0.5


def test_keyword_arguments_pass_through_a_quantized_module() -> None:
    class Keyword(PlainModule):
        def forward(self, *, image: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
            return self.net(image) * gain

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return F.cross_entropy(self(image=batch[0], gain=2.0), batch[1])

    quiet_trainer(callbacks=[QuantizationAwareTraining()]).fit(Keyword(), loader())


def test_a_sparse_model_can_be_pruned_further() -> None:
    model = nn.Linear(100, 100)
    first = Pruner(model, final_sparsity=0.5, start=0, end=0)
    first.step(0)
    kept = first.masks["weight"].clone()
    second = Pruner(model, final_sparsity=0.8, start=0, end=0)
    second.step(0)
    assert zeros(model, ["weight"]) == 0.8
    assert (kept | ~second.masks["weight"]).all()


def test_a_pattern_that_matches_nothing_does_not_leave_a_dense_model_silently() -> None:
    with pytest.raises(CompressionError, match=r"GradualMagnitudePruning\.targets: .*Closest:"):
        quiet_trainer(callbacks=[pruning(targets=["re:encoder.*"])]).fit(PlainModule(), loader())


def test_training_again_after_the_end_starts_a_new_schedule() -> None:
    module = PlainModule()
    for _ in range(2):
        prune = pruning()
        quiet_trainer(callbacks=[prune, QuantizationAwareTraining()]).fit(module, loader())
        assert prune.pruner.sparsity() == pytest.approx(0.8, abs=1e-3)


def test_memory_does_not_grow_over_two_thousand_updates() -> None:
    model = nn.Linear(16, 16)
    pruner = Pruner(model, final_sparsity=0.9, start=0, end=2050)
    prepare(model, example_inputs=torch.randn(2, 16))
    x = torch.randn(8, 16)

    def update(step: int) -> None:
        pruner.step(step)
        if step % 10 == 0:
            model(x).sum().backward()

    def held() -> tuple[int, int]:
        """Objects that the collector knows, and bytes of tensors."""
        gc.collect()
        known = gc.get_objects()
        return len(known), sum(o.nbytes for o in known if type(o) in (torch.Tensor, nn.Parameter))

    for step in range(50):
        update(step)
    objects, size = held()
    for step in range(50, 2051):
        update(step)
    objects_now, size_now = held()
    assert objects_now <= objects * 1.01
    assert size_now <= size
    assert pruner.sparsity() == pytest.approx(0.9, abs=1e-2)
