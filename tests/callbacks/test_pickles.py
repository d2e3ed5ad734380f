"""What a trained module and the callbacks leave in a pickle."""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning_modules import PlainModule, loader, quiet_trainer
from networks import ResidualNet

from lightning_compress import (
    CompressedExport,
    CompressionMonitor,
    GradualMagnitudePruning,
    KnowledgeDistillation,
    QuantizationAwareTraining,
)
from lightning_compress.quantization import find, strip


def fitted(folder: Path, *more: Any) -> tuple[PlainModule, list[Any]]:
    torch.manual_seed(0)
    module = PlainModule()
    callbacks = [
        GradualMagnitudePruning(0.5, end=0.5, every=1),
        KnowledgeDistillation("self"),
        CompressionMonitor(print_phases=False),
        CompressedExport(folder, ["packed"], latency=False, print_report=False),
        *more,
    ]
    quiet_trainer(callbacks=callbacks).fit(module, loader(4), loader(2))
    return module, callbacks


class TakesCallbacks(PlainModule):
    """Saves what it is given, callbacks among it, as modules of some libraries do."""

    def __init__(self, net: torch.nn.Module, trainer_kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = net


class Mine(CompressionMonitor):
    """A class made from one of ours."""


def saved(module: torch.nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    return buffer.getvalue()


def test_a_pruned_and_distilled_module_carries_nothing_of_ours(tmp_path: Path) -> None:
    module, _ = fitted(tmp_path)
    assert b"lightning_compress" not in saved(module)


def test_a_quantized_module_carries_nothing_once_it_is_stripped(tmp_path: Path) -> None:
    module, _ = fitted(tmp_path, QuantizationAwareTraining())
    assert b"lightning_compress" in saved(module)
    assert b"lightning_compress" not in saved(strip(module))


def test_every_callback_pickles_before_and_after_a_fit(tmp_path: Path) -> None:
    for callback in [QuantizationAwareTraining(), *fitted(tmp_path, QuantizationAwareTraining())[1]]:
        assert type(pickle.loads(pickle.dumps(callback))) is type(callback)


def received(callbacks: list[Any], path: Path) -> None:
    path.write_text(" ".join(type(callback).__name__ for callback in callbacks))


def test_every_callback_reaches_a_process_that_a_launcher_spawns(tmp_path: Path) -> None:
    callbacks = [QuantizationAwareTraining(), *fitted(tmp_path, QuantizationAwareTraining())[1]]
    process = torch.multiprocessing.get_context("spawn").Process(target=received, args=(callbacks, tmp_path / "names"))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "names").read_text().split() == [type(callback).__name__ for callback in callbacks]


@pytest.mark.parametrize("again", [False, True])
def test_a_callback_from_a_pickle_takes_its_quantizers_to_the_next_validation(tmp_path: Path, again: bool) -> None:
    module, callbacks = fitted(tmp_path, QuantizationAwareTraining())
    expected = quiet_trainer().validate(module, loader(2), verbose=False)
    loaded = pickle.loads(pickle.dumps(callbacks[-1]))
    plain = PlainModule()
    plain.load_state_dict(module.state_dict())
    if again:
        loaded = pickle.loads(pickle.dumps(loaded))
    assert quiet_trainer(callbacks=[loaded]).validate(plain, loader(2), verbose=False) == expected
    assert find(plain) is loaded.quantization


@pytest.mark.parametrize("alone", ["pruning", "distillation", "monitor", "export", "quantization"])
def test_a_checkpoint_holds_no_callbacks_of_ours_among_its_hyper_parameters(alone: str, tmp_path: Path) -> None:
    chosen = {
        "pruning": GradualMagnitudePruning(0.5, end=0.5, every=1),
        "distillation": KnowledgeDistillation("self"),
        "monitor": Mine(print_phases=False),
        "export": CompressedExport(tmp_path, ["packed"], latency=False, print_report=False),
        "quantization": QuantizationAwareTraining(),
    }
    theirs = Callback()
    given = {"max_epochs": 1, "callbacks": [chosen[alone], theirs]}
    module = TakesCallbacks(ResidualNet(), given)
    trainer = quiet_trainer(callbacks=list(given["callbacks"]))
    trainer.fit(module, loader(4), loader(2))
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    with zipfile.ZipFile(tmp_path / "own.ckpt") as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert not [text for _, text, _ in pickletools.genops(pickled) if str(text).startswith("lightning_compress.")]
    found = torch.load(tmp_path / "own.ckpt", weights_only=False)["hyper_parameters"]
    assert found["trainer_kwargs"]["max_epochs"] == 1
    expected = module.net.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found["net"].state_dict().items())
    assert found["net"](torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    assert (find(module) is not None) == (alone == "quantization")
    assert [type(item) for item in found["trainer_kwargs"]["callbacks"]] == [Callback]
    assert module.hparams["trainer_kwargs"]["callbacks"] == [chosen[alone], theirs]
