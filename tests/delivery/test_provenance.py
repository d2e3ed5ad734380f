"""What an exported ONNX file says of where it comes from."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from lightning_compress.delivery.provenance import provenance
from lightning_compress.export import to_onnx

RECORD = {"mean": [0.25], "std": [0.5], "classes": 2, "class_names": ["猫", "dog"], "source": "/a/path", "sha256": "0"}


def test_the_file_holds_classes_normalization_run_versions_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    model = nn.Linear(4, 2)
    to_onnx(model, torch.zeros(2, 4), tmp_path / "model.onnx", metadata=provenance(model, run="digits", data=RECORD))
    found = {item.key: item.value for item in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert found.pop("producer").startswith("lightning-compress ")
    assert (found.pop("module"), found.pop("run")) == ("Linear", "digits")
    values = {key: json.loads(text) for key, text in found.items()}
    assert values.pop("versions")["torch"] == torch.__version__
    assert values == {"mean": [0.25], "std": [0.5], "classes": 2, "class_names": ["猫", "dog"], "seed": 7}


def test_what_is_not_known_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert set(provenance(nn.Linear(1, 1))) == {"producer", "module", "versions"}
