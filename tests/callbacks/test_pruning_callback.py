"""The pruning callback inside a real Trainer."""

import subprocess
import sys

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_compress.callbacks.pruning import GradualMagnitudePruning
from lightning_compress.errors import CompressionError

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2),
    "adam_fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.9),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, history_size=4),
    "lbfgs_wolfe": lambda p: torch.optim.LBFGS(p, max_iter=3, line_search_fn="strong_wolfe"),
}


class Module(L.LightningModule):
    def __init__(self, optimizer="sgd"):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        self.optimizer = optimizer

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return OPTIMIZERS[self.optimizer](self.parameters())


def data(batches=8, size=4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batches * size, 8, generator=generator)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=size)


def trainer(tmp_path, *callbacks, **settings):
    defaults = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "default_root_dir": tmp_path,
    }
    return L.Trainer(callbacks=list(callbacks), **{**defaults, **settings})


def pruning(**settings):
    return GradualMagnitudePruning(**{"final_sparsity": 0.75, "start": 2, "end": 10, "every": 2, **settings})


class Watch(L.Callback):
    """Checks weights and optimizer state after every batch, and keeps the sparsity seen."""

    def __init__(self, callback, state=True):
        self.callback, self.state, self.sparsity = callback, state, []

    def on_train_batch_end(self, trainer, pl_module, *args):
        pruner = self.callback.pruner
        self.sparsity.append(pruner.sparsity())
        for name, parameter in pruner.parameters.items():
            pruned = ~pruner.masks[name]
            assert not parameter.detach()[pruned].any(), f"{name} at {trainer.global_step}"
            for optimizer in trainer.optimizers:
                for key, value in optimizer.state.get(parameter, {}).items():
                    if self.state and isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                        assert not value[pruned].any(), f"{key} of {name} at {trainer.global_step}"


@pytest.fixture(autouse=True)
def seeded():
    L.seed_everything(0, verbose=False)


def test_sparsity_rises_along_the_schedule(tmp_path):
    callback = pruning(schedule="linear")
    watch = Watch(callback)
    trainer(tmp_path, callback, watch).fit(Module(), data())
    expected = [0.0 if s < 2 else round(0.75 * (min(s, 10) // 2 * 2 - 2) / 8 * 192) / 192 for s in range(1, 17)]
    assert watch.sparsity == pytest.approx(expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_and_optimizer_state_are_zero_after_every_step(tmp_path, optimizer):
    callback = pruning()
    trainer(tmp_path, callback, Watch(callback)).fit(Module(optimizer), data())
    assert callback.pruner.sparsity() == 0.75


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate_grad_batches": 3, "max_epochs": 6},
        {"gradient_clip_val": 0.01},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"overfit_batches": 2, "max_epochs": 6},
        {"max_steps": 12, "max_epochs": -1},
        {"val_check_interval": 3},
    ],
)
def test_masks_hold_under_trainer_settings(tmp_path, settings):
    callback = pruning()
    trainer(tmp_path, callback, Watch(callback), **settings).fit(Module(), data(), data())
    assert callback.pruner.sparsity() == 0.75


def test_points_in_time_count_optimizer_steps_under_accumulation(tmp_path):
    callback = pruning(start=0.25, end="4ep", every="1ba")
    trainer(tmp_path, callback, max_epochs=8, accumulate_grad_batches=4).fit(Module(), data())
    schedule = callback.pruner.schedule
    assert (schedule.start, schedule.end, schedule.every) == (4, 8, 1)


class Noisy(Module):
    def on_before_optimizer_step(self, optimizer):
        for parameter in self.parameters():
            parameter.grad.add_(1.0)


class Clipping(Module):
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        for parameter in self.parameters():
            parameter.grad.add_(1.0)


class NoiseCallback(L.Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for parameter in pl_module.parameters():
            parameter.grad.add_(1.0)


@pytest.mark.parametrize("module", [Noisy, Clipping])
def test_masks_hold_when_the_module_writes_to_gradients(tmp_path, module):
    callback = pruning()
    trainer(tmp_path, callback, Watch(callback)).fit(module("adam"), data())


def test_masks_hold_when_a_later_callback_writes_to_gradients(tmp_path):
    callback = pruning()
    trainer(tmp_path, callback, NoiseCallback(), Watch(callback)).fit(Module("adam"), data())


class Manual(Module):
    def __init__(self, behind_lightning=False):
        super().__init__()
        self.automatic_optimization = False
        self.behind_lightning = behind_lightning

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers(use_pl_optimizer=not self.behind_lightning):
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.manual_backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if self.behind_lightning:
            self.optimizers()[0].step()

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.net[0].parameters(), lr=0.01),
            torch.optim.SGD(self.net[2].parameters(), lr=0.1, momentum=0.9),
        ]


@pytest.mark.parametrize("behind_lightning", [False, True])
def test_masks_hold_under_manual_optimization_with_two_optimizers(tmp_path, behind_lightning):
    callback = pruning()
    trainer(tmp_path, callback, Watch(callback)).fit(Manual(behind_lightning), data())
    assert callback.pruner.sparsity() == 0.75


@pytest.mark.parametrize("regrow", [None, "gradient", "random"])
@pytest.mark.parametrize("criterion", ["movement", "taylor", "random"])
def test_masks_hold_for_criteria_that_look_at_gradients(tmp_path, criterion, regrow):
    callback = pruning(criterion=criterion, regrow=regrow)
    watch = Watch(callback)
    module = Manual() if criterion == "taylor" else Module("adam")
    trainer(tmp_path, callback, watch).fit(module, data())
    assert sum(int(m.sum()) for m in callback.pruner.masks.values()) == 48


class HalfPrecisionScaling(Module):
    """Makes every third step's gradients infinite, as an overflow under loss scaling does."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("inf") if batch_idx % 3 == 2 else loss


def test_masks_hold_when_loss_scaling_skips_steps(tmp_path):
    from lightning.pytorch.plugins import MixedPrecision

    callback = pruning(criterion="movement")
    scaler = torch.amp.GradScaler("cpu")
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    run = trainer(tmp_path, callback, Watch(callback), plugins=[plugin])
    run.fit(HalfPrecisionScaling(), data())
    assert callback.pruner.sparsity() == 0.75
    assert all(score.isfinite().all() for score in callback.pruner.state_dict()["sums"].values())


@pytest.mark.parametrize("criterion", ["magnitude", "movement", "random"])
def test_a_resumed_run_is_bit_equal_to_an_uninterrupted_one(tmp_path, criterion):
    def callback():
        return pruning(criterion=criterion, regrow="random", start=3, every=3, end=14)

    module = Module("adam")
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=8, save_top_k=-1, filename="{step}")
    straight = callback()
    trainer(tmp_path, straight, saver, max_epochs=2).fit(module, data())

    L.seed_everything(5, verbose=False)
    again = Module("adam")
    resumed = callback()
    trainer(tmp_path, resumed, max_epochs=2).fit(again, data(), ckpt_path=tmp_path / "step=8.ckpt", weights_only=True)
    for name, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    for name, mask in straight.pruner.masks.items():
        assert torch.equal(mask, resumed.pruner.masks[name]), name


def test_resuming_with_other_settings_is_refused_with_the_differences(tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, filename="last")
    trainer(tmp_path, pruning(), saver).fit(Module(), data())
    with pytest.raises(CompressionError, match=r"final_sparsity was 0\.75, now 0\.5"):
        trainer(tmp_path, pruning(final_sparsity=0.5), max_epochs=3).fit(
            Module(), data(), ckpt_path=tmp_path / "last.ckpt"
        )


def test_a_checkpoint_of_a_step_has_the_masks_of_that_step_and_plain_keys(tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    callback = pruning(schedule="linear")
    trainer(tmp_path, saver, callback).fit(Module(), data())
    for step in (1, 4, 7, 10):
        checkpoint = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        weights = checkpoint["state_dict"]
        assert list(weights) == list(Module().state_dict())
        zeros = sum(int((weights[f"net.{i}.weight"] == 0).sum()) for i in (0, 2))
        assert zeros == round(0.75 * max(0, step // 2 * 2 - 2) / 8 * 192)


def test_a_checkpoint_loads_where_this_package_is_not_imported(tmp_path):
    saver = ModelCheckpoint(dirpath=tmp_path, filename="last")
    trainer(tmp_path, pruning(), saver).fit(Module(), data())
    code = (
        "import sys, torch; from torch import nn; "
        "state = torch.load(sys.argv[1], weights_only=True)['state_dict']; "
        "net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)); "
        "net.load_state_dict({k[4:]: v for k, v in state.items()}); "
        "assert 'lightning_compress' not in sys.modules; "
        "print(sum(int((net[i].weight == 0).sum()) for i in (0, 2)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "last.ckpt")], capture_output=True, text=True, check=True
    )
    assert int(out.stdout) == 144


class BuildsIn(Module):
    def __init__(self, hook):
        super().__init__()
        del self.net
        self.hook = hook

    def build(self):
        if not hasattr(self, "net"):
            self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def setup(self, stage):
        if self.hook == "setup":
            self.build()

    def configure_model(self):
        if self.hook == "configure_model":
            self.build()


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
def test_layers_may_be_built_in_any_hook(tmp_path, hook):
    callback = pruning()
    trainer(tmp_path, callback, Watch(callback)).fit(BuildsIn(hook), data())
    assert callback.pruner.sparsity() == 0.75


def test_fit_test_and_fit_again_work(tmp_path):
    callback = pruning()
    module = Module()
    run = trainer(tmp_path, callback)
    run.fit(module, data())
    run.validate(module, data(), verbose=False)
    masks = {name: mask.clone() for name, mask in callback.pruner.masks.items()}
    run.fit_loop.max_epochs = 3
    run.fit(module, data())
    assert run.global_step == 24
    assert all(torch.equal(mask, callback.pruner.masks[name]) for name, mask in masks.items())
    trainer(tmp_path, callback).fit(Module(), data())
    assert callback.pruner.sparsity() == 0.75


def test_a_fit_that_goes_on_longer_keeps_what_is_pruned(tmp_path):
    callback = pruning(start=0.0, end=0.5, every=1)
    watch = Watch(callback)
    module = Module()
    run = trainer(tmp_path, callback, watch)
    run.fit(module, data())
    run.fit_loop.max_epochs = 6
    run.fit(module, data())
    assert callback.pruner.schedule.end == 24
    assert min(watch.sparsity[16:]) == 0.75


def test_no_hook_is_left_on_the_optimizer(tmp_path):
    seen = []

    class Keep(L.Callback):
        def on_train_start(self, trainer, pl_module):
            seen.extend(trainer.optimizers)

    trainer(tmp_path, pruning(), Keep()).fit(Module(), data())
    assert [len(optimizer._optimizer_step_post_hooks) for optimizer in seen] == [0]


def test_fast_dev_run_prunes_to_the_end(tmp_path):
    callback = pruning(start=100, end=10_000)
    trainer(tmp_path, callback, fast_dev_run=2).fit(Module(), data())
    assert callback.pruner.sparsity() == 0.75


def test_a_schedule_that_ends_after_the_run_is_refused_before_training(tmp_path):
    with pytest.raises(CompressionError, match=r"GradualMagnitudePruning\.end: .*16 optimizer steps"):
        trainer(tmp_path, pruning(end=17)).fit(Module(), data())


def test_a_run_that_stops_early_is_warned_about(tmp_path):
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.global_step >= 5

    with pytest.warns(UserWarning, match="training ended at optimizer step 5, before the last mask update at 10"):
        trainer(tmp_path, pruning(), Stop()).fit(Module(), data())


class Stream(IterableDataset):
    def __iter__(self):
        return iter(data().dataset)


def test_a_run_of_unknown_length_takes_steps_and_refuses_fractions(tmp_path):
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.global_step >= 12

    loader = DataLoader(Stream(), batch_size=4)
    callback = pruning()
    trainer(tmp_path, callback, Stop(), max_epochs=-1).fit(Module(), loader)
    assert callback.pruner.sparsity() == 0.75
    with pytest.raises(CompressionError, match=r"GradualMagnitudePruning\.end: expected a point in time"):
        trainer(tmp_path, pruning(end=0.5), max_epochs=-1).fit(Module(), loader)


def test_bad_settings_are_refused_at_construction():
    with pytest.raises(CompressionError, match=r"GradualMagnitudePruning\.final_sparsity: .*got 1\.2"):
        GradualMagnitudePruning(final_sparsity=1.2)


def test_a_pattern_that_matches_nothing_is_refused_before_training(tmp_path):
    with pytest.raises(CompressionError, match=r"GradualMagnitudePruning\.targets: .*Closest: net\.0"):
        trainer(tmp_path, pruning(targets=["net.00"])).fit(Module(), data())


def test_sharded_strategies_are_refused(tmp_path, monkeypatch):
    from lightning.pytorch.strategies import FSDPStrategy

    run = trainer(tmp_path)
    monkeypatch.setattr(type(run), "strategy", FSDPStrategy())
    with pytest.raises(CompressionError, match=r"GradualMagnitudePruning: Trainer\.strategy: .*got 'FSDPStrategy'"):
        pruning().setup(run, Module(), "fit")


def test_averaged_weights_are_masked_too(tmp_path):
    callback = pruning()
    saver = ModelCheckpoint(dirpath=tmp_path, filename="last")
    module = Module()
    trainer(tmp_path, EMAWeightAveraging(decay=0.9), callback, saver).fit(module, data())
    weights = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    for name, mask in callback.pruner.masks.items():
        assert not weights[name][~mask].any()
        assert not dict(module.named_parameters())[name].detach()[~mask].any()


def test_averaging_listed_after_pruning_is_refused(tmp_path):
    with pytest.raises(CompressionError, match="list EMAWeightAveraging before it"):
        trainer(tmp_path, pruning(), EMAWeightAveraging()).fit(Module(), data())
