from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import Mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_compress import CompressionError
from lightning_compress.callbacks.export import CompressedExport
from lightning_compress.callbacks.monitor import CompressionMonitor
from lightning_compress.callbacks.pruning import GradualMagnitudePruning
from lightning_compress.callbacks.quantization import QuantizationAwareTraining
from lightning_compress.delivery.evaluation import duplicate
from lightning_compress.errors import DoesNotHold
from lightning_compress.export.packed.save_load import load_packed
from lightning_compress.quantization import find


def dataset(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 12, generator=generator)
    return TensorDataset(x, x[:, :5].argmax(1))


def loader(count: int = 128, seed: int = 0, batch_size: int = 32) -> DataLoader:
    return DataLoader(dataset(count, seed), batch_size=batch_size)


class Plain(L.LightningModule):
    """Calls ``self.net`` and defines no forward, as much user code does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Mlp()
        self.accuracy = MulticlassAccuracy(5, average="micro")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        scores = self.net(batch[0])
        self.accuracy(scores, batch[1])
        self.last_scores = scores.sum()
        self.log("val/acc", self.accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


class Keywords(Plain):
    """Calls itself with keyword arguments."""

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        return self.net(x) * scale

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0], scale=batch[0][:, :1].exp()), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.accuracy(self(x=batch[0], scale=batch[0][:, :1].exp()), batch[1])
        self.log("val/acc", self.accuracy)


def trainer(*callbacks: Any, epochs: int = 2, **options: Any) -> L.Trainer:
    return L.Trainer(
        **{
            "max_epochs": epochs,
            "callbacks": list(callbacks),
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        }
    )


def packed_only(path: Path, **options: Any) -> CompressedExport:
    return CompressedExport(path, formats=["packed"], **{"latency": False, **options})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompressedExport, Plain, Path]:
    """One whole run: export first in the list, so that the others come after it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("exported") / "out"
    callback, module = CompressedExport(path, name="digits"), Plain()
    others = GradualMagnitudePruning(0.5, end=0.5, every=1), QuantizationAwareTraining(), CompressionMonitor()
    trainer(callback, *others, epochs=4).fit(module, loader(), loader(70, seed=1))
    return callback, module, path


def predict_with_onnx(path: Path, x: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def test_every_file_is_written_and_listed(exported):
    _, _, path = exported
    files = {item.name for item in path.iterdir()}
    reports = {"report.json", "report.md", "report.html", "manifest.json"}
    assert files == {"model.onnx", "model.packed", "dense.onnx", "dense.safetensors", *reports}
    assert set(json.loads((path / "manifest.json").read_text())["files"]) == files - {"manifest.json"}


def test_the_report_has_the_digest_and_size_of_each_artifact(exported):
    _, _, path = exported
    for item in json.loads((path / "report.json").read_text())["artifacts"]:
        content = (path / item["file"]).read_bytes()
        assert item["sha256"] == hashlib.sha256(content).hexdigest()
        assert item["bytes"] == len(content) == sum(item["breakdown"].values())


def test_the_deployed_metric_is_that_of_the_written_file(exported):
    callback, _, path = exported
    x, y = loader(70, seed=1).dataset.tensors
    expected = (predict_with_onnx(path / "model.onnx", x).argmax(1) == y.numpy()).mean()
    # A processor without VNNI may round elsewhere in ONNX Runtime's default kernels: one prediction of 70.
    assert callback.report["results"]["deployed"]["metrics"]["val/acc"] == pytest.approx(expected, abs=1.5 / 70)


def test_the_fake_quantized_metric_is_that_of_the_trained_module(exported):
    callback, module, _ = exported
    again = trainer().validate(module, loader(70, seed=1), verbose=False)[0]["val/acc"]
    assert callback.report["results"]["fake_quantized"]["metrics"]["val/acc"] == pytest.approx(again)


def test_the_dense_metric_is_that_of_the_weights_at_the_start(exported):
    callback, _, path = exported
    from safetensors.torch import load_file

    module = Plain()
    module.load_state_dict(load_file(path / "dense.safetensors"))
    x, y = loader(70, seed=1).dataset.tensors
    with torch.no_grad():
        expected = (module.net(x).argmax(1) == y).float().mean().item()
    dense = callback.report["results"]["dense"]
    assert dense["metrics"]["val/acc"] == pytest.approx(expected)
    assert dense["source"] == "at start of fit"


def test_agreement_and_difference_are_measured_on_every_sample(exported):
    report = exported[0].report
    assert report["samples"] == 70
    assert report["agreement"] >= 0.98
    assert 0 <= report["max_abs_difference"] < 0.1


def test_latency_compares_files_in_one_runtime(exported):
    report = exported[0].report
    results = report["results"]
    assert results["dense"]["runtime"] == results["deployed"]["runtime"]
    assert results["fake_quantized"]["runtime"].startswith("PyTorch")
    medians = {form: results[form]["latency_ms"]["median"] for form in ("dense", "deployed")}
    assert report["latency"]["ratio"]["median"] == pytest.approx(medians["deployed"] / medians["dense"], rel=0.5)


def test_bytes_are_those_of_parameters_and_of_the_file(exported):
    callback, module, path = exported
    results = callback.report["results"]
    assert results["dense"]["bytes"] == 4 * sum(p.numel() for p in module.parameters())
    assert results["deployed"]["bytes"] == (path / "model.onnx").stat().st_size


def test_the_report_counts_the_bytes_of_every_stage(exported):
    callback, module, path = exported
    found, layers = callback.report["bytes"], find(module).layers
    state = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    assert found["quantized"] == sum(t.numel() * (1 if name in layers else 4) for name, t in state.items())
    bound = 0.0
    for layer in layers.values():
        _, counts = np.unique(layer.integers().numpy(), return_counts=True)
        bound += -(counts * np.log2(counts / counts.sum())).sum() / 8
    assert found["entropy_bound"] == pytest.approx(bound, abs=0.1)
    assert found["packed"] == (path / "model.packed").stat().st_size > found["integers"]
    for name in ("model.onnx", "model.packed"):
        content = (path / name).read_bytes()
        assert found["files"][name] == {"on_disk": len(content), "zipped": len(zlib.compress(content, 9))}
    for name in ("report.md", "report.html"):
        assert "model.onnx by zlib, level 9" in (path / name).read_text()


def test_the_onnx_file_says_which_module_it_was_and_which_versions_wrote_it(exported):
    _, _, path = exported
    found = {item.key: item.value for item in onnx.load(path / "model.onnx").metadata_props}
    assert found["module"] == "Plain"
    assert json.loads(found["versions"])["torch"] == torch.__version__


def test_layers_show_what_was_asked_and_what_was_reached(exported):
    layer = next(row for row in exported[0].report["layers"] if row["name"] == "net.3.weight")
    weight = exported[1].net[3].weight
    assert layer["sparsity"] == pytest.approx((weight == 0).float().mean().item())
    assert (layer["weight_bits"], layer["activation_bits"]) == (8, 8)
    assert layer["macs"] == 16 * 16


def test_the_packed_file_loads_into_a_fresh_module(exported):
    _, module, path = exported
    fresh = load_packed(path / "model.packed", Plain()).eval()
    x = torch.randn(16, 12)
    with torch.no_grad():
        torch.testing.assert_close(fresh.net(x), module.eval().net(x))


def test_the_module_is_left_as_it_was_trained(exported):
    _, module, _ = exported
    assert find(module) is not None
    trainer(epochs=1).fit(module, loader())


def test_keyword_arguments_and_a_forward_of_its_own_are_exported(tmp_path):
    module = Keywords()
    callback = CompressedExport(tmp_path, formats=["onnx"], latency=False)
    trainer(callback, QuantizationAwareTraining(), epochs=1).fit(module, loader(), loader(64, seed=1))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert [item.name for item in session.get_inputs()] == ["x", "scale"]
    assert callback.report["agreement"] >= 0.95


class Look(L.Callback):
    """Keeps what the trainer and the process look like at the end of a fit."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seen = {
            "random": torch.random.get_rng_state().tolist(),
            "numpy": np.random.get_state()[1].tolist(),
            "threads": torch.get_num_threads(),
            "trainer": pl_module.trainer is trainer,
            "modes": [module.training for module in pl_module.modules()],
            "weights": {name: value.tolist() for name, value in pl_module.state_dict().items()},
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "function": trainer.state.fn,
            "loaders": id(trainer.val_dataloaders),
        }


def test_an_export_leaves_module_trainer_and_random_numbers_alone(tmp_path):
    before, after = Look(), Look()
    export = CompressedExport(tmp_path, formats=["packed"])
    trainer(before, export, after).fit(Plain(), loader(), loader(64, seed=1))
    assert export.report is not None
    assert after.seen == before.seen


class Data(L.LightningDataModule):
    """Splits at random and unseeded whenever it is set up."""

    def __init__(self) -> None:
        super().__init__()
        self.set_ups: list[str] = []
        self.scale = 1.0

    def setup(self, stage: str) -> None:
        self.set_ups.append(stage)
        self.train, self.val = torch.utils.data.random_split(dataset(160, 0), [96, 64])
        self.test = dataset(40, 2)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=32)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=32)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, batch_size=32)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * self.scale, batch[1]


class Tested(Plain):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())


def test_validation_does_not_set_the_data_module_up_again(tmp_path):
    data = Data()
    callback = packed_only(tmp_path)
    run = trainer(callback)
    run.fit(Plain(), datamodule=data)
    assert data.set_ups == ["fit"]
    assert data.trainer is run
    assert callback.report["samples"] == 64


def test_testing_leaves_the_data_modules_own_split_alone(tmp_path):
    data = Data()
    callback = packed_only(tmp_path, split="test")
    seen = []

    class Split(L.Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append(list(data.val.indices))

    trainer(Split(), callback).fit(Tested(), datamodule=data)
    assert list(data.val.indices) == seen[0]
    assert callback.report["samples"] == 40
    assert set(callback.report["results"]["deployed"]["metrics"]) == {"test/acc"}


def test_the_data_modules_batch_hooks_are_applied(tmp_path):
    data = Data()
    data.scale = -1.0
    callback = packed_only(tmp_path)
    run = trainer(callback)
    run.fit(Plain(), datamodule=data)
    trained = float(run.callback_metrics["val/acc"])
    assert callback.report["results"]["deployed"]["metrics"]["val/acc"] == pytest.approx(trained)


def test_a_given_dense_checkpoint_is_the_one_compared_with(tmp_path):
    module, data = Plain(), (loader(), loader(64, seed=1))
    run = trainer(epochs=3)
    run.fit(module, *data)
    run.save_checkpoint(tmp_path / "dense.ckpt")
    callback = packed_only(tmp_path / "out", dense=tmp_path / "dense.ckpt")
    trainer(callback, epochs=1).fit(Plain(), *data)
    dense = callback.report["results"]["dense"]
    assert dense["source"] == "given"
    assert dense["metrics"]["val/acc"] == pytest.approx(float(run.callback_metrics["val/acc"]))


def test_a_dense_checkpoint_of_another_architecture_is_refused_before_training(tmp_path):
    torch.save({"state_dict": nn.Linear(2, 2).state_dict()}, tmp_path / "other.ckpt")
    callback = packed_only(tmp_path / "out", dense=tmp_path / "other.ckpt")
    with pytest.raises(CompressionError, match=r"dense state lacks 'net\.1\.weight'"):
        trainer(callback).fit(Plain(), loader(), loader())


def test_a_missing_dense_checkpoint_is_refused_before_training(tmp_path):
    with pytest.raises(CompressionError, match=r"CompressedExport\.dense.*gone\.ckpt"):
        trainer(packed_only(tmp_path / "out", dense=tmp_path / "gone.ckpt")).fit(Plain(), loader(), loader())


def test_a_resumed_run_is_compared_with_the_weights_of_its_beginning(tmp_path):
    data = loader(), loader(64, seed=1)
    first = trainer(packed_only(tmp_path / "a"), epochs=1)
    first.fit(Plain(), *data)
    first.save_checkpoint(tmp_path / "half.ckpt")
    callback = packed_only(tmp_path / "b")
    trainer(callback, epochs=2).fit(Plain(), *data, ckpt_path=tmp_path / "half.ckpt")
    assert (tmp_path / "b/dense.safetensors").read_bytes() == (tmp_path / "a/dense.safetensors").read_bytes()
    assert callback.report["results"]["dense"]["source"] == "at start of fit"


def test_a_second_fit_of_the_same_module_keeps_the_first_dense_weights(tmp_path):
    module, callback, data = Plain(), packed_only(tmp_path), (loader(), loader(64, seed=1))
    trainer(callback, epochs=1).fit(module, *data)
    before = (tmp_path / "dense.safetensors").read_bytes()
    trainer(callback, epochs=1).fit(module, *data)
    assert (tmp_path / "dense.safetensors").read_bytes() == before


def test_a_drop_beyond_the_limit_fails_after_everything_is_written(tmp_path):
    callback = packed_only(tmp_path, monitor="val/acc", max_drop=-1.0)
    with pytest.raises(DoesNotHold, match=r"val/acc drops by .* at most -1 is asked for"):
        trainer(callback).fit(Plain(), loader(), loader(64, seed=1))
    assert json.loads((tmp_path / "report.json").read_text())["failures"]
    assert (tmp_path / "model.packed").exists()


def test_nothing_is_compared_with_the_random_weights_of_a_start(tmp_path):
    torch.manual_seed(0)
    module = Plain()
    callback = packed_only(tmp_path / "scratch", monitor="val/acc", max_drop=0.5)
    with pytest.raises(DoesNotHold, match=r"max_drop cannot be judged: there is no val/acc of a dense model"):
        trainer(callback, epochs=20).fit(module, loader(), loader(64, seed=1))
    assert callback.report["results"]["dense"]["metrics"] == {}
    assert any(note.startswith("No dense control: val/acc is ") for note in callback.report["notes"])
    # The same module, trained now, fine-tuned: its start is a control.
    again = packed_only(tmp_path / "tuned", monitor="val/acc", max_drop=0.5)
    trainer(again, epochs=1).fit(module, loader(), loader(64, seed=1))
    trained = callback.report["results"]["fake_quantized"]["metrics"]["val/acc"]
    assert again.report["results"]["dense"]["metrics"] == {"val/acc": pytest.approx(trained)}


def test_a_model_that_collapses_is_a_failure_without_any_limit(tmp_path):
    class Ruined(Plain):
        def on_train_epoch_end(self) -> None:
            if self.trainer.max_epochs == 1:
                torch.nn.init.zeros_(self.net[5].weight)
                torch.nn.init.constant_(self.net[5].bias, 0.0)

    torch.manual_seed(0)
    module = Ruined()
    trainer(epochs=20).fit(module, loader())
    callback = packed_only(tmp_path)
    with pytest.warns(UserWarning, match="The trained model has collapsed: val/acc"):
        trainer(callback, epochs=1).fit(module, loader(), loader(64, seed=1))
    assert callback.failures == tuple(callback.report["failures"])
    assert "val/acc" in callback.failures[0]


def test_limits_that_hold_pass(tmp_path):
    callback = packed_only(tmp_path, monitor="val/acc", max_drop=1.0, min_agreement=0.99)
    trainer(callback).fit(Plain(), loader(), loader(64, seed=1))
    assert callback.report["failures"] == []


def test_a_monitor_that_is_not_logged_is_refused_before_training(tmp_path):
    class Untrained(Plain):
        def on_train_start(self) -> None:
            raise AssertionError("training began")

    callback = packed_only(tmp_path, monitor="val/accuracy", max_drop=1.0)
    with pytest.raises(CompressionError, match=r"CompressedExport\.monitor.*got 'val/accuracy'.*val/acc"):
        trainer(callback).fit(Untrained(), loader(), loader(64, seed=1))


def test_a_limit_that_cannot_be_judged_fails_after_everything_is_written(tmp_path):
    class Regression(Plain):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/mse", (self.net(batch[0]) - batch[0][:, :5]).square().mean())

    data = DataLoader(TensorDataset(torch.randn(8, 12)), batch_size=4)
    callback = packed_only(tmp_path, min_agreement=0.5, dataloaders=data)
    with pytest.raises(DoesNotHold, match="not recognized as class scores"):
        trainer(callback).fit(Regression(), loader(), loader(64, seed=1))
    assert (tmp_path / "report.json").exists()


def test_files_that_no_export_wrote_are_not_replaced(tmp_path):
    (tmp_path / "model.packed").write_text("mine")
    with pytest.raises(CompressionError, match=r"No export wrote model\.packed.*overwrite=True"):
        trainer(packed_only(tmp_path)).fit(Plain(), loader(), loader())
    assert (tmp_path / "model.packed").read_text() == "mine"


def test_files_are_replaced_when_told_so_and_when_they_are_ours(tmp_path):
    (tmp_path / "model.packed").write_text("mine")
    data = loader(), loader(64, seed=1)
    trainer(packed_only(tmp_path, overwrite=True), epochs=1).fit(Plain(), *data)
    trainer(packed_only(tmp_path), epochs=1).fit(Plain(), *data)
    assert (tmp_path / "model.packed").stat().st_size > 100


def test_a_directory_that_cannot_be_made_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CompressionError, match=r"CompressedExport\.dirpath.*can be made and written"):
        trainer(packed_only(tmp_path / "file" / "out")).fit(Plain(), loader(), loader())


def test_a_failed_fit_exports_nothing(tmp_path):
    class Failing(Plain):
        def on_train_end(self) -> None:
            raise RuntimeError("the user's own")

    with pytest.raises(RuntimeError, match="the user's own"):
        trainer(packed_only(tmp_path)).fit(Failing(), loader(), loader())
    assert not (tmp_path / "report.json").exists()


class Steered(Mlp):
    """Takes a branch that depends on data, which no trace can follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = super().forward(x)
        return scores if scores.sum() > 0 else 2 * scores


def test_a_network_that_cannot_be_traced_leaves_the_packed_file(tmp_path):
    module, fresh = Plain(), Plain()
    module.net, fresh.net = Steered(), Steered()
    callback = CompressedExport(tmp_path, latency=False, on_error="warn")
    with pytest.warns(UserWarning, match=r"torch\.export cannot trace"):
        trainer(callback, QuantizationAwareTraining(), epochs=1).fit(module, loader(), loader(64, seed=1))
    assert not (tmp_path / "model.onnx").exists()
    load_packed(tmp_path / "model.packed", fresh).eval()
    x = torch.randn(16, 12)
    with torch.no_grad():
        torch.testing.assert_close(fresh.net(x), module.eval().net(x))


def test_fast_dev_run_writes_nothing_unless_asked(tmp_path):
    trainer(packed_only(tmp_path / "a"), fast_dev_run=True).fit(Plain(), loader(), loader())
    trainer(packed_only(tmp_path / "b", in_fast_dev_run=True), fast_dev_run=True).fit(Plain(), loader(), loader())
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "b/report.json").exists()


def test_a_split_without_a_step_is_refused_before_training(tmp_path):
    with pytest.raises(CompressionError, match=r"CompressedExport\.split.*Give split='val'\. Define test_step"):
        trainer(packed_only(tmp_path, split="test")).fit(Plain(), loader(), loader())


def test_a_fit_without_validation_data_is_refused_before_training(tmp_path):
    with pytest.raises(CompressionError, match=r"no val_dataloader.*verify=False"):
        trainer(packed_only(tmp_path)).fit(Plain(), loader())


def test_without_verification_no_data_is_needed(tmp_path):
    callback = packed_only(tmp_path, verify=False)
    trainer(callback).fit(Plain(), loader())
    assert callback.report["agreement"] is None
    assert callback.report["results"]["deployed"]["bytes"] > 0


def test_a_first_step_that_passes_its_batch_over_is_waited_for(tmp_path):
    class Choosy(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
            return super().training_step(batch, batch_idx) if batch_idx else None

    callback, module = packed_only(tmp_path, verify=False), Choosy()
    trainer(callback).fit(module, loader())
    x = torch.randn(4, 12)
    fresh = load_packed(tmp_path / "model.packed", Plain()).eval()
    torch.testing.assert_close(fresh.net(x), module.eval().net(x))


def test_evaluation_that_calls_another_module_than_training_is_found_out(tmp_path):
    class Astray(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.other = Mlp()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/acc", self.other(batch[0]).mean())

    callback = packed_only(tmp_path)
    with pytest.warns(UserWarning, match=r"never called net\(\.\.\.\)"):
        trainer(callback, num_sanity_val_steps=0).fit(Astray(), loader(), loader())
    assert "model.packed was written and not verified" in callback.failures[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ["onx"]}, r"formats.*got 'onx'.*onnx"),
        ({"formats": "onnx"}, r"formats: expected a list"),
        ({"split": "train"}, r"split: expected 'val' or 'test'"),
        ({"max_drop": 0.01}, r"monitor.*since max_drop is given"),
        ({"min_agreement": 99}, r"min_agreement.*from 0 to 1"),
        ({"min_agreement": 0.9, "verify": False}, r"verify.*since a limit is given"),
        ({"threads": 0}, r"threads.*at least 1"),
        ({"mode": "up"}, r"mode.*'max' or 'min'"),
    ],
)
def test_bad_settings_are_refused_at_construction(tmp_path, options, message):
    with pytest.raises(CompressionError, match=r"CompressedExport\." + message):
        CompressedExport(tmp_path, **options)


def test_masked_scores_are_compared_and_reported(tmp_path):
    class Masked(Mlp):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).masked_fill(torch.arange(5) == 4, -torch.inf)

    class Closed(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.net = Masked()

    data = DataLoader([(x, y % 4) for x, y in dataset(64, 0)], batch_size=32)
    export = CompressedExport(tmp_path, formats=["onnx"], latency=False)
    trainer(QuantizationAwareTraining(), export).fit(Closed(), data, data)
    report = json.loads((tmp_path / "report.json").read_text())
    assert 0 <= report["mean_abs_difference"] <= report["max_abs_difference"] < 1
    assert report["agreement"] >= 0.95


@pytest.mark.parametrize(
    ("precision", "dtype", "given"),
    [("bf16-true", torch.float32, False), ("64-true", torch.float32, True), ("64-true", torch.float64, False)],
)
def test_files_of_a_run_in_another_precision_are_in_float32(tmp_path, precision, dtype, given):
    data = DataLoader([(x.to(dtype), y) for x, y in dataset(64, 0)], batch_size=32)
    options = {"example_inputs": torch.randn(2, 12, dtype=torch.float64)} if given else {}
    export = CompressedExport(tmp_path, formats=["onnx", "torch_export", "packed"], **options)
    trainer(QuantizationAwareTraining(), export, precision=precision).fit(module := Plain(), data, data)
    expected = torch.from_numpy(predict_with_onnx(tmp_path / "model.onnx", dataset(64, 0).tensors[0]))
    with torch.no_grad():
        found = duplicate(module).net(dataset(64, 0).tensors[0])
    assert expected.dtype == torch.float32
    assert (expected.argmax(1) == found.argmax(1)).float().mean() >= 0.95
    assert export.report["agreement"] >= 0.95


def test_a_torch_export_file_is_verified_and_measured_like_the_others(tmp_path):
    callback = CompressedExport(tmp_path, formats=["packed", "torch_export"])
    module = Plain()
    trainer(callback, QuantizationAwareTraining()).fit(module, loader(), loader(70, seed=1))
    assert callback.report["results"]["deployed"]["source"] == "model.pt2"
    assert callback.report["agreement"] >= 69 / 70
    x, _ = loader(70, seed=1).dataset.tensors
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(program(x), module.eval().net(x), rtol=0.05, atol=0.05)
