"""The command line, the callbacks and the core say the same settings with the same defaults."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightning_compress
from lightning_compress import CompressedExport, CompressionMonitor, KnowledgeDistillation, QuantizationAwareTraining
from lightning_compress.distillation import Attention, Features, Logits, Relations
from lightning_compress.export.litert.settings import LiteRTSettings
from lightning_compress.quantization.settings import QuantizationSettings

CONF = Path(lightning_compress.__file__).parents[1] / "conf"


def defaults(function: Any) -> dict[str, Any]:
    found = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def written(file: str, *keys: str) -> dict[str, Any]:
    node: dict[str, Any] = yaml.safe_load((CONF / file).read_text(encoding="utf-8"))
    for key in keys:
        node = node[key]
    node.pop("_target_")
    return node


# Objects that no command line can write, and what the job itself decides or has in its own settings.
OBJECTS = {"example_inputs", "dataloaders"}
OF_THE_JOB = {"dirpath", "name", "dense"}


@pytest.mark.parametrize(
    ("function", "file", "keys", "other"),
    [
        # The run of a command begins with a dense model: it quantizes in the second half.
        (QuantizationAwareTraining, "quantization/w8a8.yaml", (), {"start": 0.5}),
        # The bundled data have test sets; the command prints a table of its own; None is the default of each field.
        (
            CompressedExport,
            "export/default.yaml",
            (),
            {"split": "test", "print_report": False, "litert": dataclasses.asdict(LiteRTSettings())},
        ),
        (CompressionMonitor, "callbacks/monitor.yaml", ("monitor",), {}),
        (KnowledgeDistillation, "distillation/logits.yaml", (), {"losses": None}),
        (Features, "distillation/features.yaml", ("losses", "features"), {"modules": "???"}),
        (Attention, "distillation/attention.yaml", ("losses", "attention"), {"modules": "???"}),
        (Relations, "distillation/relations.yaml", ("losses", "relations"), {}),
        (Logits, "distillation/logits.yaml", ("losses", "logits"), {}),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", ""),
)
def test_the_command_line_says_what_the_code_says(
    function: Any, file: str, keys: tuple[str, ...], other: dict[str, Any]
) -> None:
    code, config = defaults(function), written(file, *keys)
    apart = OBJECTS | OF_THE_JOB | {name for name, value in other.items() if value is None}
    assert {name: code[name] for name in code.keys() - apart} | {
        name: value for name, value in other.items() if value is not None
    } == {name: config[name] for name in config.keys() - apart}


def test_the_callback_says_what_the_core_says() -> None:
    core = {f.name: list(f.default) if isinstance(f.default, tuple) else f.default for f in
            dataclasses.fields(QuantizationSettings) if f.name != "field"}  # fmt: skip
    callback = defaults(QuantizationAwareTraining)
    assert {name: callback[name] for name in core} == core
