"""CompressedExport with OpenVINO, collected by ``make test-extras`` alone."""

from __future__ import annotations

import json
from pathlib import Path

from lightning_modules import PlainModule, loader, quiet_trainer

from lightning_compress import CompressedExport, QuantizationAwareTraining
from lightning_compress.apps.inspect.inspect import inspect


def test_an_export_writes_runs_and_reports_openvino(tmp_path: Path) -> None:
    callback = CompressedExport(tmp_path, formats=["openvino"])
    quiet_trainer(callbacks=[callback, QuantizationAwareTraining(backend="openvino")]).fit(
        PlainModule(), loader(), loader(seed=1)
    )
    report = json.loads((tmp_path / "report.json").read_text())
    deployed, size = (
        report["results"]["deployed"],
        sum((tmp_path / f"model.{end}").stat().st_size for end in ("xml", "bin")),
    )
    assert (deployed["source"], deployed["bytes"]) == ("model.xml", size)
    assert deployed["runtime"].startswith("OpenVINO ")
    assert report["agreement"] >= 0.95
    assert report["latency"]["ratio"]["median"] > 0
    assert {"model.xml", "model.bin", "dense.onnx"} <= set(
        json.loads((tmp_path / "manifest.json").read_text())["files"]
    )
    assert inspect(tmp_path).bytes == size
