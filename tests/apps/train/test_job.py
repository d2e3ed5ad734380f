from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_compress.cli.main import main
from lightning_compress.data import Digits
from lightning_compress.models import MLP

USER_CODE = '''
import signal

import lightning as L
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(64, width), nn.Linear(width, 10)

    def forward(self, x):
        return self.out(self.hidden(x.flatten(1)).relu())


class ReadsValues(Net):
    """Takes a branch that depends on data, which no trace can follow."""

    def __init__(self, **_) -> None:
        super().__init__()

    def forward(self, x):
        return super().forward(x if float(x.sum()) > -1e9 else -x)


class Module(L.LightningModule):
    """Builds its layers late and has no test step."""

    def __init__(self, width: int = 4, lr: float = 0.1) -> None:
        super().__init__()
        self.width, self.lr = width, lr

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            self.net = Net(self.width)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Interrupt(L.Callback):
    """Ctrl-C in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(signal.SIGINT)


class InterruptTest(L.Callback):
    """Ctrl-C while the trained model is tested."""

    def on_test_batch_end(self, *_) -> None:
        raise KeyboardInterrupt


class FirstWeights(L.Callback):
    """Writes the weights as they are before the first step, one file a training."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_start(self, trainer, pl_module) -> None:
        import pathlib

        folder = pathlib.Path(self.folder)
        folder.mkdir(exist_ok=True)
        state = {name: value.clone() for name, value in pl_module.state_dict().items()}
        torch.save(state, folder / f"{len(list(folder.iterdir()))}.pt")


class RefusesLate(L.Callback):
    def setup(self, trainer, pl_module, stage) -> None:
        from lightning_compress.errors import CompressionError

        raise CompressionError("RefusesLate.targets: matches nothing.")
'''

QUICK = ("trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "trainer.max_epochs=2", "threads=1")
SMALL = ("model=mlp", "model.net.hidden=[16]")

EXPORT = ("export=default", "export.latency=false")

Train = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Train:
    """Runs the command in a directory with the user's module and gives its exit code and its JSON."""
    (tmp_path / "mine.py").write_text(USER_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)

    def run(*overrides: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = main(["train", "--json", *QUICK, *overrides])
        printed = capsys.readouterr()
        return code, json.loads(printed.out) if printed.out else {"error": printed.err}

    return run


def weights(path: str) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def resume(error: str) -> list[str]:
    """The overrides of the command that an interrupted run prints."""
    command = shlex.split(error.split("Go on with:")[1].splitlines()[1])
    assert command[:2] == ["lightning-compress", "train"]
    return command[2:]


def test_a_run_leaves_its_results_and_its_checkpoint(train: Train) -> None:
    code, result = train(*SMALL)
    assert code == 0
    stored = json.loads((Path(result["output_dir"]) / "result.json").read_text())
    assert stored["values"] == result["values"]
    assert result["values"]["test/acc"] == result["rows"]["trained"]["metrics"]["test/acc"] > 0.3
    assert "dense" not in result["rows"]
    assert set(weights(result["checkpoint"])) == {f"net.layers.{i}.{p}" for i in (1, 3) for p in ("weight", "bias")}


def test_the_reported_accuracy_is_that_of_the_checkpoint_on_the_test_images(train: Train) -> None:
    _, result = train(*SMALL)
    data = Digits()
    data.setup()
    net = MLP(1, 8, 10, hidden=[16])
    net.load_state_dict({name.removeprefix("net."): w for name, w in weights(result["checkpoint"]).items()})
    batches = [(net(x).argmax(1) == y).float() for x, y in data.test_dataloader()]
    assert result["values"]["test/acc"] == pytest.approx(float(torch.cat(batches).mean()))


def test_without_compression_dense_control_and_model_end_equal_to_the_bit(train: Train) -> None:
    code, result = train(*SMALL, "dense_baseline=true")
    assert code == 0
    assert same(weights(result["dense_checkpoint"]), weights(result["checkpoint"]))
    assert result["rows"]["dense"]["metrics"] == result["rows"]["trained"]["metrics"]


def test_a_dense_control_changes_nothing_in_the_model_and_a_seed_does(train: Train) -> None:
    _, alone = train(*SMALL)
    _, beside = train(*SMALL, "dense_baseline=true")
    _, other = train(*SMALL, "seed=1")
    assert same(weights(alone["checkpoint"]), weights(beside["checkpoint"]))
    assert not same(weights(alone["checkpoint"]), weights(other["checkpoint"]))


def test_both_trainings_start_equal_even_if_layers_are_built_late(train: Train, tmp_path: Path) -> None:
    code, _ = train(
        "dense_baseline=true",
        "model._target_=mine.Module",
        "+callbacks.first._target_=mine.FirstWeights",
        f"+callbacks.first.folder={tmp_path}/first",
    )
    assert code == 0
    found = [torch.load(path, weights_only=True) for path in sorted((tmp_path / "first").iterdir())]
    assert len(found) == 2, "dense control, model"
    assert same(*found)


def test_a_users_module_from_the_working_directory_is_trained(train: Train) -> None:
    code, result = train("model._target_=mine.Module", "+model.width=7")
    assert code == 0
    assert weights(result["checkpoint"])["net.hidden.weight"].shape == (7, 64)


def test_a_users_network_in_the_bundled_module_is_trained(train: Train) -> None:
    code, result = train("model.net._target_=mine.Net", "model.net.width=5")
    assert code == 0
    assert weights(result["checkpoint"])["net.hidden.weight"].shape == (5, 64)


def test_a_trained_dense_control_is_taken_and_not_trained_again(train: Train) -> None:
    _, first = train(*SMALL, "dense_baseline=true", "trainer.max_epochs=1")
    code, result = train(*SMALL, f"dense_checkpoint={first['dense_checkpoint']}")
    assert code == 0
    assert result["dense_checkpoint"] == first["dense_checkpoint"]
    assert not (Path(result["output_dir"]) / "dense" / "dense.ckpt").exists()
    dense = result["rows"]["dense"]["metrics"]
    assert dense["test/acc"] == first["rows"]["dense"]["metrics"]["test/acc"]
    assert dense != result["rows"]["trained"]["metrics"]


def test_a_plain_state_dict_is_a_dense_control_too(train: Train, tmp_path: Path) -> None:
    _, first = train(*SMALL, "dense_baseline=true", "trainer.max_epochs=1")
    torch.save(weights(first["dense_checkpoint"]), tmp_path / "plain.pt")
    code, result = train(*SMALL, "dense_checkpoint=plain.pt")
    assert code == 0
    accuracy = first["rows"]["dense"]["metrics"]["test/acc"]
    assert result["rows"]["dense"]["metrics"]["test/acc"] == accuracy


def test_the_compressed_model_starts_from_the_weights_that_are_given_and_the_control_from_the_seed(
    train: Train, tmp_path: Path
) -> None:
    _, first = train(*SMALL)
    folder = tmp_path / "first"
    watch = ("+callbacks.first._target_=mine.FirstWeights", f"+callbacks.first.folder={folder}")
    code, _ = train(*SMALL, "dense_baseline=true", f"init_checkpoint={first['checkpoint']}", *watch)
    assert code == 0
    control, model = (torch.load(folder / name) for name in ("0.pt", "1.pt"))
    assert same(model, weights(first["checkpoint"]))
    assert not same(control, model)


def test_a_start_from_another_architecture_is_refused_before_the_control_trains(train: Train, tmp_path: Path) -> None:
    _, first = train(*SMALL)
    wider = ("model=mlp", "model.net.hidden=[24]", "dense_baseline=true")
    code, result = train(*wider, f"init_checkpoint={first['checkpoint']}", "hydra.run.dir=second")
    assert code == 2
    assert "init_checkpoint: 'net.layers.1.weight' has shape [16, 64] in the dense state" in result["error"]
    assert not (tmp_path / "second" / "dense").exists()


def test_the_dense_control_is_the_teacher(train: Train) -> None:
    code, taught = train(*SMALL, "dense_baseline=true", "distillation=logits")
    assert code == 0
    control = taught["dense_checkpoint"]
    _, given = train(*SMALL, "distillation=logits", f"distillation.teacher={control}")
    _, alone = train(*SMALL)
    assert same(weights(taught["checkpoint"]), weights(given["checkpoint"]))
    assert same(weights(alone["checkpoint"]), weights(control))
    assert not same(weights(taught["checkpoint"]), weights(control))


def test_a_model_that_starts_from_random_weights_needs_a_teacher(train: Train) -> None:
    code, found = train(*SMALL, "distillation=logits")
    assert code == 2
    assert "distillation.teacher: expected a dense checkpoint or self" in found["error"]
    assert train(*SMALL, "distillation=logits", "distillation.teacher=self", "trainer.max_epochs=1")[0] == 0


@pytest.mark.parametrize("phase", ["model", "dense control"])
def test_an_interrupted_run_goes_on_to_the_same_weights(train: Train, phase: str) -> None:
    options = [*SMALL, f"dense_baseline={phase == 'dense control'}".lower()]
    _, whole = train(*options)
    code, stopped = train(*options, "+callbacks.stop._target_=mine.Interrupt", "+callbacks.stop.step=27")
    assert code == 130
    command = resume(stopped["error"])
    key = {"model": "ckpt_path", "dense control": "dense_ckpt_path"}[phase]
    assert command[-1].startswith(f"{key}=")
    stopped_at = torch.load(command[-1].split("=", 1)[1], weights_only=True)["global_step"]
    assert stopped_at == 28, "the step under way is finished, and none after it"
    code, resumed = train(*(text for text in command if text not in QUICK and "callbacks.stop" not in text))
    assert code == 0
    which = {"model": "checkpoint", "dense control": "dense_checkpoint"}[phase]
    assert same(weights(whole[which]), weights(resumed[which]))
    assert resumed["values"] == whole["values"]


def test_the_command_that_goes_on_composes_the_same_config(train: Train, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [train, _self_]\nname: my_own\n")
    stop = ("+callbacks.stop._target_=mine.Interrupt", "+callbacks.stop.step=1")
    code, stopped = train(f"--config-dir={tmp_path}", "-cn", "mine", *SMALL, *stop)
    assert code == 130
    assert resume(stopped["error"])[:4] == ["--config-name", "mine", "--config-dir", str(tmp_path)]


@pytest.mark.parametrize("phase", ["model", "dense control"])
def test_a_run_that_is_interrupted_while_it_tests_goes_on_from_what_was_trained(train: Train, phase: str) -> None:
    options = [*SMALL, f"dense_baseline={phase == 'dense control'}".lower()]
    _, whole = train(*options)
    before = signal.getsignal(signal.SIGINT)
    code, stopped = train(*options, "+callbacks.stop._target_=mine.InterruptTest")
    assert code == 130
    assert signal.getsignal(signal.SIGINT) is before
    command = resume(stopped["error"])
    assert command[-1].startswith({"model": "ckpt_path=", "dense control": "dense_checkpoint="}[phase])
    code, resumed = train(*(text for text in command if text not in QUICK and "callbacks.stop" not in text))
    assert code == 0
    assert resumed["values"]["test/acc"] == whole["values"]["test/acc"]
    assert same(weights(whole["checkpoint"]), weights(resumed["checkpoint"]))


def test_after_an_interrupt_ctrl_c_works_as_before(train: Train) -> None:
    before = signal.getsignal(signal.SIGINT)
    code, _ = train(*SMALL, "+callbacks.stop._target_=mine.Interrupt", "+callbacks.stop.step=1")
    assert code == 130
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_run_leaves_the_first_ones_files_alone(train: Train, tmp_path: Path) -> None:
    _, first = train(*SMALL)
    before = {path: path.read_bytes() for path in Path(first["output_dir"]).rglob("*") if path.is_file()}
    _, second = train(*SMALL)
    assert second["output_dir"] != first["output_dir"]
    code, refused = train(*SMALL, f"hydra.run.dir={first['output_dir']}")
    assert code == 2
    assert "hydra.run.dir: expected a directory without results" in refused["error"]
    changed = [p.name for p, content in before.items() if p.read_bytes() != content and ".hydra" not in p.parts]
    assert changed == ["train.log"] or changed == []


def test_what_cannot_be_set_up_is_refused_before_the_dense_control_trains(train: Train, tmp_path: Path) -> None:
    code, result = train(
        *SMALL,
        "dense_baseline=true",
        f"hydra.run.dir={tmp_path}/run",
        "+callbacks.late._target_=mine.RefusesLate",
    )
    assert code == 2
    assert "RefusesLate.targets: matches nothing." in result["error"]
    assert not (tmp_path / "run" / "dense").exists()


@pytest.mark.parametrize(
    ("wanted", "objective"), [("test/acc", "test/acc"), ("[val/loss,test/acc]", ["val/loss", "test/acc"])]
)
def test_the_objective_is_what_was_asked_for(train: Train, wanted: str, objective: Any) -> None:
    _, result = train(*SMALL, f"optimized_metric={wanted}")
    values = result["values"]
    expected = values[objective] if isinstance(objective, str) else [values[name] for name in objective]
    assert result["objective"] == expected


def test_an_unknown_objective_is_refused_and_the_results_are_kept(train: Train, tmp_path: Path) -> None:
    code, result = train(*SMALL, "optimized_metric=test/accuracy", f"hydra.run.dir={tmp_path}/run")
    assert code == 2
    assert "optimized_metric: expected a number of this run, got 'test/accuracy'. Closest: test/acc" in result["error"]
    assert (tmp_path / "run" / "result.json").exists()


def test_the_loggers_get_the_resolved_config(train: Train) -> None:
    _, result = train(*SMALL)
    text = (Path(result["output_dir"]) / "csv" / "hparams.yaml").read_text()
    assert "image_size: 8" in text
    assert "${" not in text


COMPRESSED = (
    *SMALL,
    "pruning=global",
    "pruning.every=2",
    "quantization=w8a8",
    "export=default",
    "export.formats=[packed]",
    "export.latency=false",
    "dense_baseline=true",
)


def test_a_compressed_run_reports_dense_trained_and_deployed_on_the_test_images(train: Train) -> None:
    code, result = train(*COMPRESSED, "trainer.max_epochs=4")
    assert code == 0
    report = json.loads(Path(result["report"]).read_text())
    assert report["data"]["evaluated"] == "test"
    assert report["data"]["test"] == 359
    for version in ("dense", "fake_quantized", "deployed"):
        assert report["results"][version]["metrics"]["test/acc"] == result["values"][f"{version}/test/acc"]
    alone = result["rows"]["dense"]["metrics"]
    _, dense = train(*SMALL, "trainer.max_epochs=4")
    assert report["results"]["dense"]["metrics"]["test/acc"] == pytest.approx(dense["values"]["test/acc"])
    assert alone["val/acc"] == dense["values"]["val/acc"]
    pruned = weights(result["checkpoint"])["net.layers.1.weight"]
    assert (pruned == 0).float().mean() > 0.7
    deployed = report["results"]["deployed"]
    assert deployed["bytes"] == (Path(result["report"]).parent / "model.packed").stat().st_size
    assert result["values"]["deployed/bytes"] == deployed["bytes"]


def test_a_limit_that_does_not_hold_ends_with_1_and_everything_written(train: Train) -> None:
    limit = ("export.monitor=test/acc", "export.max_drop=-1.0")
    code, result = train(*COMPRESSED, *limit)
    assert code == 1
    assert len(result["failures"]) == 1
    assert "test/acc" in result["failures"][0]
    assert (Path(result["output_dir"]) / "result.json").exists()
    assert (Path(result["report"]).parent / "model.packed").exists()


def test_a_format_that_cannot_be_written_ends_with_1_and_everything_else(train: Train) -> None:
    code, result = train("model=mlp", "model.net._target_=mine.ReadsValues", *EXPORT, "export.on_error=warn")
    assert code == 1
    assert result["failures"][0].startswith("onnx was not written: ")
    assert (Path(result["report"]).parent / "model.packed").exists()


def test_a_pattern_that_matches_nothing_is_refused_before_the_dense_control_trains(
    train: Train, tmp_path: Path
) -> None:
    code, result = train(*COMPRESSED, "pruning.targets=[re:conv.*]", f"hydra.run.dir={tmp_path}/run")
    assert code == 2
    assert "re:conv.*" in result["error"]
    assert not (tmp_path / "run" / "dense").exists()


def test_an_interrupted_compressed_run_goes_on_to_the_same_weights_and_size(train: Train) -> None:
    _, whole = train(*COMPRESSED)
    stop = ("+callbacks.stop._target_=mine.Interrupt", "+callbacks.stop.step=27")
    _, trained = train(*COMPRESSED, "trainer.max_epochs=2")
    options = [text for text in COMPRESSED if text != "dense_baseline=true"]
    code, stopped = train(*options, f"dense_checkpoint={trained['dense_checkpoint']}", *stop)
    assert code == 130
    code, resumed = train(*(text for text in resume(stopped["error"]) if text not in QUICK))
    assert code == 0
    assert same(weights(whole["checkpoint"]), weights(resumed["checkpoint"]))
    assert resumed["values"]["deployed/bytes"] == whole["values"]["deployed/bytes"]


def test_a_run_goes_on_with_other_settings_only_when_told_so(train: Train) -> None:
    options = (*SMALL, "pruning=global", "pruning.every=2", "pruning.final_sparsity=0.5")
    _, half = train(*options, "trainer.max_epochs=1")
    changed = (*options, "pruning.final_sparsity=0.8", f"ckpt_path={half['checkpoint']}", "trainer.max_epochs=2")
    code, result = train(*changed)
    assert code == 2
    assert "final_sparsity was 0.5, now 0.8" in result["error"]
    code, result = train(*changed, "pruning.accept_changes=true")
    assert code == 0
    state = weights(result["checkpoint"])
    pruned = [value for name, value in state.items() if name.endswith("weight")]
    zeros = sum(int((value == 0).sum()) for value in pruned) / sum(value.numel() for value in pruned)
    assert zeros == pytest.approx(0.8, abs=0.01)
