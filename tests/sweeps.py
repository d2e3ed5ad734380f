"""Directories of sweeps, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reports import example_report


def write_job(
    sweep: Path,
    name: str,
    *,
    acc: float = 0.98,
    packed: int = 20_000,
    onnx: int = 80_000,
    latency: float | None = 0.03,
    dense_acc: float | None = 0.98,
    sparsity: float = 0.8,
    bits: int | None = 8,
    seconds: float = 12.0,
) -> Path:
    """A finished job, in the form in which the training application leaves it."""
    report = example_report()
    report["plan"]["pruning"] = {"final_sparsity": sparsity, "pattern": "unstructured", "distribution": "global"}
    report["plan"]["quantization"] = None if bits is None else {"weight_bits": bits, "activation_bits": bits}
    for version, value in (("dense", dense_acc), ("fake_quantized", acc), ("deployed", acc)):
        report["results"][version]["metrics"] = {"test/acc": value, "test/loss": 4 * (1 - (value or 0))}
    deployed = report["results"]["deployed"]
    deployed["bytes"] = onnx
    deployed["latency_ms"] = None if latency is None else {"median": latency, "p90": latency}
    if dense_acc is None:
        report["results"]["dense"] = None
    report["artifacts"] = [
        {"format": format, "file": f"model.{format}", "bytes": size, "sha256": "0", "breakdown": {}}
        for format, size in (("onnx", onnx), ("packed", packed))
    ]
    report["samples"] = 360
    job = sweep / name
    (job / "compressed").mkdir(parents=True)
    write(job / "compressed" / "report.json", report)
    (job / "compressed" / "report.html").write_text("<title>a report</title>")
    write(job / "result.json", {"name": name, "seconds": {"compressed": seconds}, "failures": []})
    write_record(job, "finished")
    return job


def write_record(job: Path, status: str, error: str | None = None) -> Path:
    """What the training application notes of a job when it begins and ends."""
    job.mkdir(parents=True, exist_ok=True)
    record = {"format": 1, "config_hash": "0", "overrides": job.name.split(","), "status": status, "error": error}
    write(job / "job.json", record)
    return job


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))
