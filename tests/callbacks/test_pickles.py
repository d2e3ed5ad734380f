"""What a trained module and the callbacks leave in a pickle."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_modules import PlainModule, loader, quiet_trainer

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
