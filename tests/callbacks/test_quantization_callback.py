"""QuantizationAwareTraining inside real Trainers."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning_modules import PlainModule, loader, quiet_trainer
from networks import ResidualNet
from patience import HANG_SECONDS
from torch.utils.data import DataLoader, IterableDataset

from lightning_compress import CompressionError
from lightning_compress.callbacks.quantization import QuantizationAwareTraining
from lightning_compress.quantization import find, strip


def scales(callback: QuantizationAwareTraining) -> dict[str, float]:
    assert callback.quantization is not None
    return {name: float(q.scale) for name, q in callback.quantization.activations.items()}


@pytest.mark.parametrize("where", ["init", "setup", "configure_model"])
@pytest.mark.parametrize("calls_net", [False, True])
def test_a_module_is_quantized_wherever_it_builds_and_calls_its_layers(where: str, calls_net: bool) -> None:
    callback = QuantizationAwareTraining()
    module = PlainModule(where, calls_net=calls_net)
    quiet_trainer(callbacks=[callback]).fit(module, loader(), loader(2, seed=1))
    assert callback.quantization is not None
    assert len(callback.quantization.layers) == 7
    assert {"net.block1.bn2:output", "net.block2.shortcut.1:output"} <= set(callback.quantization.activations)
    assert all(q.observed for q in callback.quantization.activations.values())


def test_an_example_input_places_quantizers_before_the_first_step() -> None:
    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.append(len(callback.quantization.activations))

    seen: list[int] = []
    callback = QuantizationAwareTraining(example_inputs=torch.randn(1, 3, 8, 8))
    quiet_trainer(callbacks=[Watch(), callback], max_steps=1).fit(PlainModule(), loader())
    assert seen == [10]


def test_quantization_starts_and_freezes_when_told() -> None:
    class Watch(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            states.append((callback.quantization.enabled, callback.quantization.frozen))

    states: list[tuple[bool, bool]] = []
    callback = QuantizationAwareTraining(start=4, freeze_range="0.75dur")
    quiet_trainer(callbacks=[callback, Watch()]).fit(PlainModule(), loader(batches=8))
    # After step n the state of step n + 1 is in force, so that a checkpoint holds it.
    assert states == [(n >= 4, n >= 12) for n in range(1, 17)]


def test_before_the_start_the_model_trains_in_float() -> None:
    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            weights.append(pl_module.net.fc.weight.detach().clone())

    runs = []
    for callbacks in ([], [QuantizationAwareTraining(start=7)]):
        torch.manual_seed(1)
        weights: list[torch.Tensor] = []
        quiet_trainer(callbacks=[*callbacks, Watch()]).fit(PlainModule(), loader())
        runs.append(weights)
    plain, compressed = runs
    assert all(torch.equal(a, b) for a, b in zip(plain[:7], compressed[:7], strict=True))
    assert not torch.equal(plain[7], compressed[7])


def test_ranges_do_not_learn_from_validation_data() -> None:
    found = []
    for scale in (1.0, 1000.0):
        torch.manual_seed(1)
        callback = QuantizationAwareTraining()
        quiet_trainer(callbacks=[callback]).fit(PlainModule(), loader(), loader(2, seed=1, scale=scale))
        found.append(scales(callback))
    assert found[0] == found[1]


def test_a_resumed_run_ends_bit_identical(tmp_path: Path) -> None:
    def run(directory: Path, ckpt_path: str | None = None) -> tuple[PlainModule, QuantizationAwareTraining]:
        torch.manual_seed(1)
        callback = QuantizationAwareTraining(start=3, freeze_range=13)
        checkpoint = ModelCheckpoint(directory, filename="{step}", every_n_train_steps=8, save_top_k=-1)
        module = PlainModule()
        trainer = quiet_trainer(callbacks=[callback, checkpoint], enable_checkpointing=True)
        trainer.fit(module, loader(), ckpt_path=ckpt_path, weights_only=True)
        return module, callback

    whole, callback = run(tmp_path / "a")
    resumed, resumed_callback = run(tmp_path / "b", str(tmp_path / "a" / "step=8.ckpt"))
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in whole.state_dict().items())
    assert scales(callback) == scales(resumed_callback)


def test_a_checkpoint_evaluates_the_same_in_a_fresh_trainer(tmp_path: Path) -> None:
    callback = QuantizationAwareTraining(weight_bits=3, activation_bits=3)
    checkpoint = ModelCheckpoint(tmp_path, filename="last", every_n_epochs=2)
    trainer = quiet_trainer(callbacks=[callback, checkpoint], enable_checkpointing=True)
    trainer.fit(PlainModule(), loader(), loader(2, seed=1))
    expected = trainer.validate(trainer.model, loader(2, seed=1), verbose=False)

    fresh = quiet_trainer(callbacks=[QuantizationAwareTraining(weight_bits=3, activation_bits=3)])
    path = str(tmp_path / "last.ckpt")
    assert (
        fresh.validate(PlainModule(), loader(2, seed=1), ckpt_path=path, weights_only=True, verbose=False) == expected
    )
    plain = quiet_trainer().validate(PlainModule(), loader(2, seed=1), ckpt_path=path, verbose=False)
    assert plain != expected


def test_a_checkpoint_loads_in_a_process_without_this_package(tmp_path: Path) -> None:
    trainer = quiet_trainer(callbacks=[QuantizationAwareTraining()])
    module = PlainModule()
    trainer.fit(module, loader())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    strip(module.eval())
    x = torch.randn(2, 3, 8, 8)
    torch.save((x, module(x)), tmp_path / "expected.pt")
    script = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[1] / "support")!r})
        sys.modules["lightning_compress"] = None  # any import of it fails
        import torch
        from lightning_modules import PlainModule
        module = PlainModule.load_from_checkpoint({str(tmp_path / "model.ckpt")!r}, weights_only=True).eval()
        x, expected = torch.load({str(tmp_path / "expected.pt")!r})
        assert torch.equal(module(x), expected)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=HANG_SECONDS)


def test_fit_fit_again_validate_and_test() -> None:
    callback = QuantizationAwareTraining()
    module = PlainModule()
    trainer = quiet_trainer(callbacks=[callback])
    trainer.fit(module, loader(), loader(2))
    trainer.fit(module, loader(), loader(2))
    other = quiet_trainer(callbacks=[QuantizationAwareTraining(weight_bits=4)])
    other.fit(module, loader(), loader(2))
    assert find(module).settings.weight_bits == 4
    assert 0 <= other.test(module, loader(2), verbose=False)[0]["test/accuracy"] <= 1
    assert list(module.net.state_dict()) == list(ResidualNet().state_dict())


def test_batch_norm_statistics_freeze_when_told() -> None:
    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            means.append(pl_module.net.stem[1].running_mean.clone())

    means: list[torch.Tensor] = []
    callback = QuantizationAwareTraining(freeze_batchnorm=4)
    quiet_trainer(callbacks=[callback, Watch()], max_epochs=1).fit(PlainModule(), loader())
    assert not torch.equal(means[2], means[3])
    assert torch.equal(means[3], means[7])


@pytest.mark.parametrize("fails", [False, True])
def test_batch_norm_trains_again_after_the_fit_in_which_it_was_frozen(fails: bool) -> None:
    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if fails and batch_idx == 6:
                raise RuntimeError("the user's own")

    module = PlainModule()
    norms = [norm for norm in module.modules() if isinstance(norm, torch.nn.BatchNorm2d)]
    norms[0].eval()  # the user's own choice
    callback = QuantizationAwareTraining(freeze_batchnorm=4)
    trainer = quiet_trainer(callbacks=[callback, Watch()], max_epochs=1)
    with pytest.raises(RuntimeError, match="the user's own") if fails else nullcontext():
        trainer.fit(module, loader())
    assert [norm.training for norm in norms] == [False] + [True] * (len(norms) - 1)
    assert [int(norm.num_batches_tracked) for norm in norms[:2]] == [0, 4]


@pytest.mark.parametrize("step", ["plain", "with a penalty", "by hand"])
def test_what_a_step_does_with_weights_outside_the_network_lets_norms_fold(step: str) -> None:
    class Stepping(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = step != "by hand"

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            if step == "with a penalty":
                loss = loss + 1e-4 * sum(parameter.abs().sum() for parameter in self.parameters())
            if step == "by hand":
                self.manual_backward(loss)
                self.optimizers().step()  # type: ignore[union-attr]
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), 0.001)

    callback = QuantizationAwareTraining()
    quiet_trainer(callbacks=[callback], max_epochs=1).fit(Stepping(), loader(2))
    assert callback.quantization is not None
    assert callback.quantization.placement is not None
    assert len(callback.quantization.placement.folds) == 6


@pytest.mark.parametrize("automatic", [True, False])
def test_a_first_step_that_passes_its_batch_over_is_not_what_places_quantizers(automatic: bool) -> None:
    class Choosy(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = automatic

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
            if batch_idx == 0:
                return None
            loss = super().training_step(batch, batch_idx)
            if not automatic:
                self.manual_backward(loss)
                self.optimizers().step()  # type: ignore[union-attr]
            return loss

    placed = []
    for module in (PlainModule(), Choosy()):
        callback = QuantizationAwareTraining()
        quiet_trainer(callbacks=[callback], max_epochs=1).fit(module, loader())
        placed.append(set(scales(callback)))
        assert callback.quantization is not None
        assert all(quantizer.observed for quantizer in callback.quantization.activations.values())
    assert placed[0] == placed[1]


def test_a_phase_that_a_run_by_hand_never_came_to_is_said() -> None:
    class Accumulating(PlainModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.manual_backward(super().training_step(batch, batch_idx))
            if batch_idx % 4 == 3:
                self.optimizers().step()  # type: ignore[union-attr]
                self.optimizers().zero_grad()  # type: ignore[union-attr]

    with pytest.warns(UserWarning, match="training ended at optimizer step 4, before start at step 8"):
        quiet_trainer(callbacks=[QuantizationAwareTraining(start=0.5)]).fit(Accumulating(), loader())


def test_learned_ranges_follow_a_scheduler_that_names_no_first_rate() -> None:
    class Plateau(PlainModule):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            # No loss is ever good enough.
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0, threshold=1e9)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            rates.append(
                (trainer.optimizers[0].param_groups[0]["lr"], callback._quantizers.ranges._adam.param_groups[0]["lr"])
            )

    rates: list[tuple[float, float]] = []
    callback = QuantizationAwareTraining(range="learned", range_lr=0.002)
    trainer = quiet_trainer(callbacks=[callback, Watch()], max_epochs=4)
    trainer.fit(Plateau(lr=0.05), loader(2), loader(1, seed=1))
    assert rates[-1][0] < 0.05 / 50
    assert [ours for _, ours in rates] == pytest.approx([theirs / 0.05 * 0.002 for theirs, _ in rates])


@pytest.mark.parametrize(
    ("settings", "trainer", "message"),
    [
        ({"start": 16}, {}, r"QuantizationAwareTraining\.start: expected a point before the end of the run \(16"),
        ({"start": "1.5dur"}, {}, r"QuantizationAwareTraining\.start: expected an int"),
        ({"freeze_range": "9ep"}, {}, r"QuantizationAwareTraining\.freeze_range: .*would never begin"),
        ({"targets": ["net.fc1"]}, {}, r"targets: .*net\.fc1.*Closest: net\.fc"),
        ({"weight_bits": 9}, {}, r"QuantizationAwareTraining\.weight_bits: expected an integer from 2 to 8, or None"),
    ],
)
def test_what_cannot_happen_is_refused_before_the_first_step(settings: dict, trainer: dict, message: str) -> None:
    module = PlainModule()
    with pytest.raises(CompressionError, match=message):
        quiet_trainer(callbacks=[QuantizationAwareTraining(**settings)], **trainer).fit(module, loader())
    assert int(module.net.stem[1].num_batches_tracked) == 0


def test_a_run_of_unknown_length_refuses_fractions_and_takes_steps() -> None:
    class Endless(IterableDataset):
        def __iter__(self) -> Any:
            while True:
                yield torch.randn(3, 8, 8), torch.tensor(1)

    data = DataLoader(Endless(), batch_size=4)
    with pytest.raises(CompressionError, match="The number of optimizer steps in the whole run is unknown"):
        quiet_trainer(callbacks=[QuantizationAwareTraining(start=0.5)], max_epochs=-1).fit(PlainModule(), data)
    callback = QuantizationAwareTraining(start=2)
    quiet_trainer(callbacks=[callback], max_epochs=-1, max_steps=4).fit(PlainModule(), data)
    assert callback.phases == {"start": 2}


def test_resuming_with_other_settings_is_refused_with_the_difference(tmp_path: Path) -> None:
    trainer = quiet_trainer(callbacks=[QuantizationAwareTraining()], max_steps=4)
    trainer.fit(PlainModule(), loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = quiet_trainer(callbacks=[QuantizationAwareTraining(weight_bits=4)])
    with pytest.raises(CompressionError, match="weight_bits was 8, now 4"):
        other.fit(PlainModule(), loader(), ckpt_path=str(tmp_path / "a.ckpt"))
