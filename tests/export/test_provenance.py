"""What an exported ONNX file says of where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_compress.export import to_onnx
from lightning_compress.export.provenance import provenance

RECORD = {"mean": [0.25], "std": [0.5], "classes": 2, "class_names": ["猫", "dog"], "source": "/a/path", "sha256": "0"}


def written(path: Path, logger: CSVLogger) -> dict[str, str]:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    to_onnx(model, torch.zeros(2, 4), path, metadata=provenance(model, data=RECORD, loggers=[logger]))
    return {item.key: item.value for item in onnx.load(path).metadata_props}


def test_the_file_holds_classes_normalization_run_versions_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    found = written(tmp_path / "model.onnx", CSVLogger(tmp_path, name="digits", version="first"))
    assert found.pop("producer").startswith("lightning-compress ")
    assert found.pop("module") == "Linear"
    values = {key: json.loads(text) for key, text in found.items()}
    assert values.pop("versions")["torch"] == torch.__version__
    assert values == {
        "mean": [0.25],
        "std": [0.5],
        "classes": 2,
        "class_names": ["猫", "dog"],
        "seed": 7,
        "runs": [{"logger": "CSVLogger", "name": "digits", "version": "first"}],
    }


def test_equal_runs_give_equal_bytes_and_another_run_does_not(tmp_path: Path) -> None:
    for name, version in (("a", "1"), ("b", "1"), ("c", "2")):
        written(tmp_path / f"{name}.onnx", CSVLogger(tmp_path, name="digits", version=version))
    first, second, third = ((tmp_path / f"{name}.onnx").read_bytes() for name in "abc")
    assert first == second != third


def test_what_is_not_known_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert set(provenance(nn.Linear(1, 1))) == {"producer", "module", "versions"}
