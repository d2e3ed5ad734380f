"""A fit is never lost to an export: what is found before it, and what goes wrong after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_compress import CompressedExport, CompressionError, GradualMagnitudePruning, QuantizationAwareTraining
from lightning_compress.callbacks import CompressedCheckpoint
from lightning_compress.errors import DoesNotHold
from lightning_compress.export.packed.save_load import load_packed

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def loader() -> DataLoader:
    x = torch.randn(32, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x.flatten(1)[:, :3].argmax(1)), 8)


class Module(L.LightningModule):
    """A small network with a batch norm and dropout, whose statistics and random numbers a rehearsal could disturb."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3))
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.net(x))

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val/acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class ReadsValues(Module):
    """Takes a branch that depends on data, which no trace can follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if float(x.sum()) > -1e9 else super().forward(-x)


class ReadsValuesOnceTrained(Module):
    """Cannot be traced after the training, which no rehearsal can find out."""

    trained = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if not self.trained or float(x.sum()) > -1e9 else -x)

    def on_train_end(self) -> None:
        self.trained = True


class ByHand(ReadsValues):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, _: int) -> None:
        optimizer = self.optimizers()
        loss = F.cross_entropy(self(batch[0]), batch[1])
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def fit(module: L.LightningModule, *callbacks: Any, **settings: Any) -> L.Trainer:
    trainer = L.Trainer(**{**QUIET, "max_epochs": 2, "callbacks": list(callbacks), **settings})
    torch.manual_seed(0)
    trainer.fit(module, loader(), loader())
    return trainer


def made(kind: type[Module]) -> Module:
    torch.manual_seed(0)
    return kind()


def export(folder: Path, formats: tuple[str, ...] = ("onnx", "packed"), **settings: Any) -> CompressedExport:
    return CompressedExport(folder, formats, **{"latency": False, "print_report": False, **settings})


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("sanity", [2, 0])
@pytest.mark.parametrize("on_error", ["refuse", "raise"])
def test_what_cannot_be_traced_is_refused_before_the_first_step(tmp_path, sanity, on_error):
    module = made(ReadsValues)
    with pytest.raises(CompressionError, match=r"formats: onnx cannot be written .*formats=\['packed'\], or on_error="):
        fit(module, export(tmp_path, on_error=on_error), QuantizationAwareTraining(), num_sanity_val_steps=sanity)
    assert module.global_step == 0


def test_a_step_that_optimizes_by_hand_is_refused_before_its_second_batch(tmp_path):
    module = made(ByHand)
    with pytest.raises(CompressionError, match="onnx cannot be written"):
        fit(module, export(tmp_path), num_sanity_val_steps=0)
    assert module.global_step == 1


def test_a_setting_that_a_format_cannot_hold_is_refused_before_the_first_step(tmp_path):
    module = made(Module)
    with pytest.raises(CompressionError, match=r"net\.0\.weight: weight_granularity 'group:3' exports for Linear"):
        fit(module, export(tmp_path), QuantizationAwareTraining(weight_granularity="group:3"))
    assert module.global_step == 0


def test_asked_to_warn_the_fit_goes_on_without_the_format(tmp_path):
    module = made(ReadsValues)
    callback = export(tmp_path, on_error="warn")
    with pytest.warns(UserWarning, match="the fit goes on without onnx"):
        trainer = fit(module, callback, QuantizationAwareTraining())
    assert trainer.state.finished
    report = read(tmp_path)
    assert [item["format"] for item in report["artifacts"]] == ["packed"]
    assert report["failures"] == list(callback.failures)
    assert report["failures"][0].startswith("onnx was not written: ")
    assert (
        report["results"]["deployed"]["metrics"]["val/acc"] == report["results"]["fake_quantized"]["metrics"]["val/acc"]
    )
    assert load_packed(tmp_path / "model.packed", made(ReadsValues)) is not None


@pytest.mark.parametrize("on_error", ["refuse", "warn"])
def test_after_the_training_the_fit_returns_and_everything_else_is_written(tmp_path, on_error):
    module = made(ReadsValuesOnceTrained)
    with pytest.warns(UserWarning, match="onnx was not written: .* The fit itself is complete"):
        trainer = fit(module, export(tmp_path, on_error=on_error), QuantizationAwareTraining())
    assert trainer.state.finished
    report = read(tmp_path)
    assert [item["format"] for item in report["artifacts"]] == ["packed"]
    assert "onnx was not written" in report["failures"][0]
    assert "onnx was not written" in (tmp_path / "report.html").read_text()
    assert set(report["results"]["fake_quantized"]["metrics"]) == {"val/acc"}


def test_asked_to_raise_the_export_raises_when_all_else_is_written(tmp_path):
    with pytest.raises(CompressionError, match="onnx was not written"):
        fit(made(ReadsValuesOnceTrained), export(tmp_path, on_error="raise"))
    assert [item["format"] for item in read(tmp_path)["artifacts"]] == ["packed"]


def test_a_report_is_written_even_where_no_format_is(tmp_path):
    with pytest.warns(UserWarning, match="onnx was not written"):
        fit(made(ReadsValuesOnceTrained), export(tmp_path, ("onnx",)))
    report = read(tmp_path)
    assert (report["artifacts"], report["results"]["deployed"]) == ([], None)
    assert "No file was run" in (tmp_path / "report.md").read_text()


def test_an_export_whose_directory_has_gone_does_not_cost_the_fit(tmp_path):
    class Removes(L.Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            for path in (tmp_path / "out").iterdir():
                path.unlink()
            (tmp_path / "out").rmdir()
            (tmp_path / "out").write_text("a file where the directory was")

    callback = export(tmp_path / "out", ("packed",))
    with pytest.warns(UserWarning, match="The fit itself is complete"):
        trainer = fit(made(Module), callback, Removes())
    assert trainer.state.finished
    assert any("The export did not end" in failure for failure in callback.failures)


def test_a_limit_that_does_not_hold_is_a_warning_where_asked(tmp_path):
    torch.save(made(Module).state_dict(), tmp_path / "dense.pt")
    limits = {"monitor": "val/acc", "max_drop": -1.0, "dense": tmp_path / "dense.pt"}
    with pytest.raises(DoesNotHold, match="val/acc drops by"):
        fit(made(Module), export(tmp_path / "a", ("packed",), **limits))
    with pytest.warns(UserWarning, match="val/acc drops by"):
        fit(made(Module), export(tmp_path / "b", ("packed",), on_error="warn", **limits))


def test_targets_that_a_stopped_training_did_not_reach_are_failures_of_the_report(tmp_path):
    stopped = EarlyStopping("val/acc", mode="max", patience=1, min_delta=2.0)
    found = export(tmp_path, ("packed",))
    fit(made(Module), stopped, GradualMagnitudePruning(0.5), QuantizationAwareTraining(start=0.9), found, max_epochs=9)
    sparsity, bits = read(tmp_path)["failures"]
    assert "not 50.0%: training ended at optimizer step 8, before the last mask update at step 22" in sparsity
    assert "Nothing is quantized: training ended at optimizer step 8, and quantization begins at step 32" in bits
    whole = export(tmp_path / "whole", ("packed",))
    fit(made(Module), GradualMagnitudePruning(0.5), QuantizationAwareTraining(start=0.5), whole)
    assert whole.failures == ()


class Packs(Module):
    """A recurrent network over sequences of given lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lengths = torch.full((len(x),), 4)
        packed = nn.utils.rnn.pack_padded_sequence(x[:, 0], lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.gru(packed)[1][-1])


def test_packed_sequences_are_refused_by_their_name(tmp_path):
    with pytest.raises(CompressionError, match=r"pack_padded_sequence reads the lengths .* padded sequence, and mask"):
        fit(made(Packs), QuantizationAwareTraining(start=2), export(tmp_path, ("onnx",)))


@pytest.mark.parametrize("sanity", [2, 0])
def test_a_rehearsal_changes_nothing_that_is_trained(tmp_path, sanity):
    plain, rehearsed = made(Module), made(Module)
    fit(plain, QuantizationAwareTraining(), num_sanity_val_steps=sanity, max_epochs=1)
    callback = export(tmp_path, ("onnx",), verify=False)
    fit(rehearsed, callback, QuantizationAwareTraining(), num_sanity_val_steps=sanity, max_epochs=1)
    assert callback._call._rehearsed
    for (name, one), other in zip(plain.state_dict().items(), rehearsed.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_a_trial_run_rehearses_and_writes_nothing(tmp_path):
    with pytest.raises(CompressionError, match="onnx cannot be written"):
        fit(made(ReadsValues), export(tmp_path / "out"), fast_dev_run=True)
    assert not (tmp_path / "out").exists()


class Unscales(nn.Module):
    """Predictions in the unit of the targets, training and validation in that of the loss."""

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return y if self.training else 10 * y + 5


class Scaled(Module):
    """Sets a part back to training mode for validation, as chemprop does."""

    def __init__(self) -> None:
        super().__init__()
        self.out = Unscales()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(super().forward(x))

    def validation_step(self, batch: Any, _: int) -> None:
        self.log("val/error", (self(batch[0]).sum(1) - batch[1]).abs().mean())

    def on_validation_model_eval(self) -> None:
        self.eval()
        self.out.train()


class Averaged(Scaled):
    """Validates with other weights than it trains."""

    def on_validation_model_eval(self) -> None:
        self.eval()

    def on_validation_start(self) -> None:
        self.kept = self.head.weight.detach().clone()
        self.head.weight.data.zero_()

    def on_validation_end(self) -> None:
        self.head.weight.data.copy_(self.kept)


@pytest.mark.parametrize("kind", [Scaled, Averaged])
@pytest.mark.parametrize("formats", [("packed",), ("onnx",)])
def test_all_metrics_go_through_the_modules_own_evaluation_hooks(tmp_path, kind, formats):
    module = made(kind)
    trainer = fit(module, QuantizationAwareTraining(), export(tmp_path, formats))
    report = read(tmp_path)
    for form in ("fake_quantized", "deployed"):
        found = report["results"][form]["metrics"]["val/error"]
        assert found == pytest.approx(float(trainer.callback_metrics["val/error"]), rel=1e-3)
    assert any("evaluates in another state" in note for note in report["notes"])


def test_the_written_file_is_the_network_in_eval_mode(tmp_path):
    import onnxruntime

    module = made(Scaled)
    fit(module, export(tmp_path, ("onnx",)))
    x = next(iter(loader()))[0]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = module.eval()(x)
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), expected, rtol=1e-4, atol=1e-4)


class Worsens(Module):
    """Its first validation stays the best."""

    def validation_step(self, batch: Any, _: int) -> None:
        self(batch[0])
        self.log("val/loss", float(self.current_epoch))


def test_a_best_checkpoint_from_before_the_targets_is_named(tmp_path):
    kept = L.pytorch.callbacks.ModelCheckpoint(tmp_path / "kept", monitor="val/loss", save_weights_only=True)
    pruning = GradualMagnitudePruning(0.8, start=0.5, end=0.6, every=1)
    with pytest.warns(UserWarning, match="from before the targets were reached"):
        fit(made(Worsens), kept, pruning, export(tmp_path / "out", ("packed",)), enable_checkpointing=True)
    note = next(note for note in read(tmp_path / "out")["notes"] if "before the targets" in note)
    assert kept.best_model_path in note
    assert "0.0% of its prunable weights are zero, 79." in note


def test_a_best_checkpoint_that_is_compressed_needs_no_word(tmp_path):
    kept = CompressedCheckpoint(tmp_path / "kept", monitor="val/acc", mode="max")
    pruning = GradualMagnitudePruning(0.8, start=0, end=2, every=1)
    fit(made(Module), kept, pruning, export(tmp_path / "out", ("packed",)), enable_checkpointing=True)
    assert not [note for note in read(tmp_path / "out")["notes"] if "before the targets" in note]


@pytest.mark.parametrize("weights_only", [True, False])
def test_the_best_checkpoint_is_exported_where_asked(tmp_path, weights_only):
    module = made(Worsens)
    kept = L.pytorch.callbacks.ModelCheckpoint(tmp_path / "kept", monitor="val/loss", save_weights_only=weights_only)
    callback = export(tmp_path / "out", ("packed",), export_checkpoint="best")
    fit(module, kept, QuantizationAwareTraining(), callback, enable_checkpointing=True)
    best = torch.load(kept.best_model_path, weights_only=True)
    loaded = load_packed(tmp_path / "out/model.packed", made(Worsens), quantized=False)
    # Packed weights are on their grid of 7 bits: half a step of 1/63 of the largest weight away, at most.
    tolerance = float(best["state_dict"]["head.weight"].abs().max()) / 63
    assert float((loaded.head.weight - best["state_dict"]["head.weight"]).abs().max()) <= 0.51 * tolerance
    assert not torch.equal(module.head.weight, best["state_dict"]["head.weight"])
    notes = " ".join(read(tmp_path / "out")["notes"])
    assert (
        f"The weights are those of the checkpoint {kept.best_model_path}, optimizer step {best['global_step']}" in notes
    )


def test_a_best_checkpoint_that_is_not_there_does_not_cost_the_fit(tmp_path):
    callback = export(tmp_path, ("packed",), export_checkpoint="best")
    with pytest.warns(UserWarning, match="that kept a best one, got 'best'"):
        assert fit(made(Module), callback).state.finished


def test_the_end_of_a_fit_shows_table_packed_size_and_the_page(tmp_path, capsys):
    fit(made(Module), QuantizationAwareTraining(), export(tmp_path, ("packed",), print_report=True))
    printed = capsys.readouterr().out
    for text in ("Dense", "Fake-quantized", "Deployed", "val/acc", "Packed: ", "than dense float32"):
        assert text in printed
    assert f"Report: {tmp_path / 'report.html'}" in printed
    assert (tmp_path / "report.html").is_file()
