"""Pruning and quantization with every other feature of Lightning: one test per row of docs/compatibility.md."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch._dynamo.utils
import torch.nn.functional as F
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning_modules import quiet_trainer
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_compress import (
    CompressedExport,
    CompressionError,
    CompressionMonitor,
    GradualMagnitudePruning,
    KnowledgeDistillation,
    QuantizationAwareTraining,
)
from lightning_compress.pruning import Pruner
from lightning_compress.quantization import find, prepare

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    """A backbone and a head, with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x))


class Module(L.LightningModule):
    """Knows nothing of compression."""

    def __init__(self, lr: float = 0.05, batch_size: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr, self.batch_size = lr, batch_size
        self.net: nn.Module = Net()

    @property
    def backbone(self) -> nn.Module:
        return self.net.backbone

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]).float(), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", F.cross_entropy(self(batch[0]).float(), batch[1]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", F.cross_entropy(self(batch[0]).float(), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


def dataset(count: int = 32) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 8, generator=generator)
    return TensorDataset(x, x[:, :4].argmax(1))


def loader(count: int = 32, batch_size: int = 4) -> DataLoader[Any]:
    return DataLoader(dataset(count), batch_size=batch_size)


def ours(**pruning: Any) -> list[Any]:
    """The two callbacks, with phases inside a run of 16 steps."""
    settings = {"final_sparsity": 0.75, "start": 2, "end": 8, "every": 2, **pruning}
    return [GradualMagnitudePruning(**settings), QuantizationAwareTraining(start=4)]


def assert_compressed(module: nn.Module, callbacks: list[Any]) -> None:
    """Sparsity is reached, zeros are zero in the integers too, ranges are known, keys are the plain model's."""
    pruner, quantization = callbacks[0].pruner, find(module)
    assert pruner.sparsity() == pytest.approx(0.75, abs=1e-3)
    assert quantization is callbacks[1].quantization
    assert quantization.enabled
    for name, quantizer in quantization.layers.items():
        assert not quantizer.integers()[~pruner.masks[name]].any()
    assert len(quantization.activations) >= 2
    assert all(q.observed and torch.isfinite(q.range).all() for q in quantization.activations.values())


def fit(module: L.LightningModule, callbacks: list[Any], data: Any = None, **settings: Any) -> L.Trainer:
    trainer = quiet_trainer(callbacks=callbacks, **settings)
    trainer.fit(module, loader() if data is None else data, loader(8))
    return trainer


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"])
def test_mixed_and_true_precision(precision: Any) -> None:
    module, callbacks = Module(), ours()
    fit(module, callbacks, precision=precision)
    assert_compressed(module, callbacks)


def test_a_module_compiled_as_a_whole() -> None:
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        torch.manual_seed(1)
        module, callbacks = Module(), [ours()[0], QuantizationAwareTraining()]
        trainer = quiet_trainer(callbacks=callbacks, max_steps=12)
        trainer.fit(torch.compile(module, backend="eager") if compiled else module, loader())
        assert_compressed(module, callbacks)
        found.append(weights(module))
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in found[0])
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 2, "one for the first batch with quantizers, one for all others"


def test_a_module_with_a_compiled_network() -> None:
    torch._dynamo.reset()
    module, callbacks = Module(), [ours()[0], QuantizationAwareTraining()]
    module.net = torch.compile(module.net, backend="eager")
    quiet_trainer(callbacks=callbacks, max_steps=12).fit(module, loader())
    assert_compressed(module, callbacks)


class Checkpointed(Module):
    """Runs its backbone again in backward, instead of keeping what it computed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net.head(checkpoint(self.net.backbone, x, use_reentrant=False))


def test_activation_checkpointing() -> None:
    module, callbacks = Checkpointed(), ours()
    fit(module, callbacks)
    assert_compressed(module, callbacks)


def test_activation_checkpointing_shows_a_batch_to_the_ranges_once() -> None:
    found = []
    for kind in (Module, Checkpointed):
        torch.manual_seed(1)
        module = kind()
        # In any training, a second forward moves batch-norm statistics twice.
        module.net.backbone[1] = nn.LayerNorm(16)
        quiet_trainer(callbacks=[QuantizationAwareTraining()], max_steps=3).fit(module, loader())
        found.append(torch.stack([q.range for q in find(module).activations.values()]))
    assert torch.equal(*found)


@pytest.mark.parametrize("batches", [2, 3])
def test_gradient_accumulation(batches: int) -> None:
    module, callbacks = Module(), ours(start=1, end=4, every=1)
    callbacks[1] = QuantizationAwareTraining(start=2)
    trainer = fit(module, callbacks, accumulate_grad_batches=batches)
    assert trainer.global_step == {2: 8, 3: 6}[batches]
    assert_compressed(module, callbacks)


def test_scheduled_gradient_accumulation_counts_its_own_steps() -> None:
    module, callbacks = Module(), ours(start=0.0, end=1.0, every=1)
    callbacks[1] = QuantizationAwareTraining(start=0.5)
    trainer = fit(module, [*callbacks, GradientAccumulationScheduler({0: 4, 1: 1})])
    # 8 batches in steps of 4, then 8 steps.
    assert trainer.global_step == callbacks[0].pruner.schedule.end == 10
    assert callbacks[1].phases == {"start": 5}
    assert_compressed(module, callbacks)
    with pytest.raises(CompressionError, match=r"start: .*an epoch is unknown here: gradient accumulation changes"):
        fit(Module(), [QuantizationAwareTraining(start="1ep"), GradientAccumulationScheduler({0: 4, 1: 1})])


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradient_clipping(algorithm: str) -> None:
    module, callbacks = Module(), ours()
    fit(module, callbacks, gradient_clip_val=0.1, gradient_clip_algorithm=algorithm)
    assert_compressed(module, callbacks)


class Gan(L.LightningModule):
    """Two networks, two optimizers, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
        self.discriminator = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for_generator, for_discriminator = self.optimizers()
        real = batch[0]
        fake = self.generator(torch.randn(len(real), 4))
        score = self.discriminator(torch.cat([real, fake.detach()]))
        loss = F.softplus(score[len(real) :]).mean() + F.softplus(-score[: len(real)]).mean()
        for optimizer, value in ((for_discriminator, lambda: loss), (for_generator, lambda: self._fooled(fake))):
            optimizer.zero_grad()
            self.manual_backward(value())
            optimizer.step()

    def _fooled(self, fake: torch.Tensor) -> torch.Tensor:
        return F.softplus(-self.discriminator(fake)).mean()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(net.parameters(), 0.01) for net in (self.generator, self.discriminator)]


def test_several_optimizers_by_hand() -> None:
    module, callbacks = Gan(), ours(start=4, end=20, every=4)
    trainer = quiet_trainer(callbacks=callbacks)
    trainer.fit(module, loader())
    assert trainer.global_step == 32
    assert_compressed(module, callbacks)
    assert {name.split(".")[0] for name in callbacks[0].pruner.masks} == {"generator", "discriminator"}


def test_several_optimizers_by_hand_have_no_fractions_of_a_run() -> None:
    with pytest.raises(CompressionError, match="is unknown here: Gan steps 2 optimizers by hand"):
        quiet_trainer(callbacks=ours(end=0.5)).fit(Gan(), loader())
    callbacks = ours(end=0.5)
    quiet_trainer(callbacks=callbacks, max_epochs=-1, max_steps=20).fit(Gan(), loader())
    assert callbacks[0].pruner.schedule.end == 10


def test_averaged_weights() -> None:
    module, callbacks = Module(), ours()
    fit(module, [EMAWeightAveraging(decay=0.8), *callbacks])
    assert_compressed(module, callbacks)


@pytest.mark.parametrize("first", [False, True])
def test_stochastic_weight_averaging(first: bool) -> None:
    module, callbacks = Module(), ours(end=6)
    swa = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)
    fit(module, [swa, *callbacks] if first else [*callbacks, swa], max_epochs=3)
    assert_compressed(module, callbacks)


@pytest.mark.parametrize("first", [False, True])
def test_batch_norm_of_averaged_weights_is_measured_with_the_weights_that_stay(first: bool, tmp_path: Path) -> None:
    module = Module()
    pruning = GradualMagnitudePruning(0.75, start=0.0, end=0.75, every=1)
    callbacks = [pruning, QuantizationAwareTraining(start=0, freeze_range=0.5, freeze_batchnorm=0.8)]
    swa = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=1)  # from before pruning ends
    saved = ModelCheckpoint(tmp_path, save_top_k=-1)
    quiet_trainer(
        callbacks=[swa, *callbacks, saved] if first else [*callbacks, swa, saved],
        max_epochs=4,
        enable_checkpointing=True,
    ).fit(module, loader(), loader(8))
    assert pruning.pruner is not None
    assert (pruning.pruner.schedule.end, callbacks[1].phases["freeze_batchnorm"]) == (24, 26)  # of 32 steps
    checkpoint = torch.load(max(tmp_path.glob("*.ckpt"), key=lambda path: path.stat().st_mtime), weights_only=True)
    weights = torch.cat([checkpoint["state_dict"][name].flatten() for name in pruning.pruner.masks])
    assert float((weights == 0).double().mean()) == pytest.approx(0.75, abs=1e-3)

    norm, found = module.net.backbone[1], copy.deepcopy(module.net.backbone[1])
    norm.reset_running_stats()
    norm.momentum = None
    with torch.no_grad():
        for x, _ in loader():
            module.train()(x)
    torch.testing.assert_close(found.running_mean, norm.running_mean)
    torch.testing.assert_close(found.running_var, norm.running_var)


def test_backbone_finetuning() -> None:
    module, callbacks = Module(), ours()
    tuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1, verbose=False, lambda_func=lambda epoch: 1.0)

    class HeadFirst(Module):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            trained = [p for p in self.parameters() if p.requires_grad]
            return torch.optim.SGD(trained, self.lr, momentum=0.9)

    module = HeadFirst()
    fit(module, [tuning, *callbacks])
    assert_compressed(module, callbacks)


def test_early_stopping_before_the_target_is_said() -> None:
    module, callbacks = Module(), ours(end=16)
    stop = EarlyStopping("val/loss", patience=1, stopping_threshold=1e9)
    with pytest.warns(UserWarning, match="training ended at optimizer step 8, before the last mask update at 16"):
        fit(module, [*callbacks, stop])
    module, callbacks = Module(), ours()
    fit(module, [*callbacks, EarlyStopping("val/loss", patience=1, stopping_threshold=1e9)], max_epochs=4)
    assert_compressed(module, callbacks)


class Loaded(Module):
    """Brings its own data, of a batch size that can be changed."""

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(8)


def everything() -> list[Any]:
    return [*ours(), CompressionMonitor()]


def test_learning_rate_finder(tmp_path: Path) -> None:
    class Keep(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if finder.optimal_lr is not None:
                started.append(weights(pl_module))

    started: list[dict[str, torch.Tensor]] = []
    finder = LearningRateFinder(num_training_steps=12, early_stop_threshold=None)
    module, callbacks = Loaded(), everything()
    before = weights(module)
    quiet_trainer(callbacks=[*callbacks, finder, Keep()], default_root_dir=tmp_path).fit(module)
    assert same(started[0], before), "nothing of the search is left in the weights"
    assert callbacks[0].pruner.schedule.end == 8
    assert_compressed(module, callbacks)


def test_batch_size_finder(tmp_path: Path) -> None:
    class Keep(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            started.append((trainer.max_steps, weights(pl_module)))

    started: list[tuple[int, dict[str, torch.Tensor]]] = []
    finder = BatchSizeFinder(steps_per_trial=2, init_val=2, max_trials=2)
    module, callbacks = Loaded(), everything()
    before = weights(module)
    trainer = quiet_trainer(callbacks=[*callbacks, finder, Keep()], default_root_dir=tmp_path)
    trainer.fit(module)
    assert started[-1][0] == -1
    assert same(started[-1][1], before), "nothing of the search is left in the weights"
    assert_compressed(module, callbacks)


@pytest.mark.parametrize(
    "settings",
    [
        {"overfit_batches": 2, "max_epochs": 8},
        {"limit_train_batches": 4, "limit_val_batches": 1, "max_epochs": 4},
        {"reload_dataloaders_every_n_epochs": 1},
        {"num_sanity_val_steps": 2, "inference_mode": True},
        {"num_sanity_val_steps": 2, "inference_mode": False},
        {"val_check_interval": 3},
        {"deterministic": True},
        {"detect_anomaly": True},
        {"barebones": True, "logger": None},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_the_trainer(settings: dict[str, Any]) -> None:
    if "barebones" in settings:
        settings = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"])
        settings["barebones"] = True
    module, callbacks = Module(), ours()
    fit(module, callbacks, **settings)
    assert_compressed(module, callbacks)


def test_a_trial_run_sees_every_phase() -> None:
    module, callbacks = Module(), ours(start=0.1, end=0.6, every=0.01)
    callbacks[1] = QuantizationAwareTraining(start=0.5)
    fit(module, callbacks, fast_dev_run=2)
    assert_compressed(module, callbacks)


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return iter(dataset())


def test_iterable_loaders_take_steps() -> None:
    module, callbacks = Module(), ours()
    fit(module, callbacks, DataLoader(Stream(), batch_size=4))
    assert_compressed(module, callbacks)


def test_the_command_line_of_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["prog"])
    prefix = "lightning_compress."
    cli = LightningCLI(
        Loaded,
        args={
            "fit": {
                "trainer": {
                    **{"accelerator": "cpu", "max_epochs": 2, "logger": False, "enable_progress_bar": False},
                    **{"enable_model_summary": False, "default_root_dir": str(tmp_path)},
                    "enable_checkpointing": False,
                    "callbacks": [
                        {
                            "class_path": f"{prefix}GradualMagnitudePruning",
                            "init_args": {"final_sparsity": 0.75, "start": "2ba", "end": 0.5, "every": 2},
                        },
                        {"class_path": f"{prefix}QuantizationAwareTraining", "init_args": {"start": 4}},
                        {"class_path": f"{prefix}CompressionMonitor"},
                    ],
                },
            },
            "subcommand": "fit",
        },
        save_config_callback=None,
    )
    assert_compressed(cli.model, [c for c in cli.trainer.callbacks if type(c).__module__.startswith(prefix)][:2])


def loop(model: nn.Module, step: Callable[[torch.Tensor], None]) -> Pruner:
    """The core in a loop of one's own."""
    pruner = Pruner(model, final_sparsity=0.75, start=2, end=8, total_steps=16)
    prepare(model, example_inputs=torch.randn(2, 8))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    done = 0
    for _ in range(2):
        for x, y in loader():
            optimizer.zero_grad()
            step(F.cross_entropy(model(x), y))
            optimizer.step()
            done += 1
            pruner.step(done)
    return pruner


def test_a_plain_loop() -> None:
    model = Net()
    pruner = loop(model, lambda loss: loss.backward())
    assert pruner.sparsity() == pytest.approx(0.75, abs=1e-3)
    assert all(not q.integers()[~pruner.masks[name]].any() for name, q in find(model).layers.items())


def test_fabric() -> None:
    fabric = L.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    model = Net()
    pruner = Pruner(model, final_sparsity=0.75, start=2, end=8, total_steps=16)
    prepare(model, example_inputs=torch.randn(2, 8))
    wrapped, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9))
    for done, (x, y) in enumerate([*loader(), *loader()], start=1):
        optimizer.zero_grad()
        fabric.backward(F.cross_entropy(wrapped(x), y))
        optimizer.step()
        pruner.step(done)
    assert pruner.sparsity() == pytest.approx(0.75, abs=1e-3)
    assert all(q.observed for q in find(model).activations.values())


@pytest.mark.parametrize("how", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_of_a_module_is_its_own(how: Callable[[Any], Any]) -> None:
    module, callbacks = Module(), ours()
    fit(module, callbacks)
    # A Trainer is no part of a module and cannot be pickled.
    module.trainer = None
    x = torch.randn(4, 8)
    module.eval()
    expected = module(x)
    other = how(module)
    assert torch.equal(other(x), expected), "the copy is quantized as the module is"
    assert find(other) is not find(module)
    ranges = [q.range.clone() for q in find(module).activations.values()]
    other.train()
    other(100 * x)
    assert all(torch.equal(a, q.range) for a, q in zip(ranges, find(module).activations.values(), strict=True))
    with torch.no_grad():
        other.net.head.weight.mul_(2)
    assert torch.equal(module(x), expected)


def test_a_module_with_hooks_can_be_fitted_after_it_was_copied() -> None:
    module, callbacks = Module(), ours()
    fit(module, callbacks)
    module.trainer = None
    other, again = copy.deepcopy(module), ours()
    fit(other, again)
    assert_compressed(other, again)
    assert find(module) is callbacks[1].quantization


def test_weights_alone_are_saved_and_loaded(tmp_path: Path) -> None:
    module, callbacks = Module(), ours()
    saver = ModelCheckpoint(tmp_path, filename="last", save_weights_only=True)
    fit(module, [*callbacks, saver], enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert "callbacks" not in checkpoint
    plain = Module.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert same(weights(plain), weights(module))
    assert all(not plain.state_dict()[name][~mask].any() for name, mask in callbacks[0].pruner.masks.items())


def test_checkpoints_load_with_weights_only(tmp_path: Path) -> None:
    def run(folder: str, path: Path | None = None) -> Module:
        torch.manual_seed(1)
        module, callbacks = Module(), everything()
        saver = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=8, save_top_k=-1)
        trainer = quiet_trainer(callbacks=[*callbacks, saver], enable_checkpointing=True)
        trainer.fit(module, loader(), ckpt_path=path, weights_only=True)
        assert_compressed(module, callbacks)
        return module

    whole = run("a")
    resumed = run("b", tmp_path / "a" / "step=8.ckpt")
    assert same(weights(whole), weights(resumed))


class Resumable(DataLoader[Any]):
    """A loader that a checkpoint can put back to where it was."""

    def __init__(self) -> None:
        super().__init__(dataset(), batch_size=4)
        self.place = 0

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


def test_a_resume_in_the_middle_of_an_epoch_is_exact_with_a_loader_that_resumes(tmp_path: Path) -> None:
    def run(folder: str, path: Path | None = None) -> Module:
        torch.manual_seed(1)
        module, callbacks = Module(), everything()
        saver = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = quiet_trainer(callbacks=[*callbacks, saver], enable_checkpointing=True)
        trainer.fit(module, Resumable(), ckpt_path=path)
        assert_compressed(module, callbacks)
        return module

    whole = run("whole")
    for step in (3, 7, 13):
        assert same(weights(whole), weights(run(f"from-{step}", tmp_path / "whole" / f"step={step}.ckpt"))), step


def test_a_resume_in_the_middle_of_an_epoch_takes_the_batches_that_lightning_gives(tmp_path: Path) -> None:
    class Seen(Callback):
        def __init__(self) -> None:
            self.batches: list[tuple[int, int, float]] = []

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.batches.append((trainer.global_step, batch_idx, float(batch[0].sum())))

    def run(folder: str, callbacks: list[Any], path: Path | None = None) -> list[tuple[int, int, float]]:
        seen = Seen()
        saver = ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=3, save_top_k=-1)
        trainer = quiet_trainer(callbacks=[*callbacks, saver, seen], enable_checkpointing=True)
        trainer.fit(Module(), loader(), ckpt_path=path)
        return seen.batches

    found = []
    for folder, callbacks in (("plain", lambda: []), ("compressed", everything)):
        run(folder, callbacks())
        found.append(run(f"{folder}-3", callbacks(), tmp_path / folder / "step=3.ckpt"))
    assert found[0] == found[1]
    assert found[0][0][:2] == (3, 3)


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
@pytest.mark.parametrize("kind", ["pruning", "quantization", "distillation", "export"])
def test_sharded_strategies_are_refused(
    strategy: Any, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune, quantize = ours()
    callback = {
        "pruning": prune,
        "quantization": quantize,
        "distillation": KnowledgeDistillation("self"),
        "export": CompressedExport(tmp_path),
    }[kind]
    trainer = quiet_trainer(callbacks=[callback])
    # DeepSpeed need not be installed to be refused.
    monkeypatch.setattr(type(trainer), "strategy", object.__new__(strategy))
    if (kind, strategy) == ("pruning", ModelParallelStrategy):
        return  # it works, see tests/test_fsdp.py
    remedy = "use ModelParallelStrategy" if (kind, strategy) == ("pruning", FSDPStrategy) else "strategy='ddp'"
    with pytest.raises(CompressionError, match=rf"{type(callback).__name__}: Trainer\.strategy: .*{remedy}"):
        callback.setup(trainer, Module(), "fit")
