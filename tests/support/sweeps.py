"""Directories of sweeps, written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports import example_report

from lightning_compress.apps.compare.choose import choose
from lightning_compress.apps.compare.html_page import html
from lightning_compress.apps.compare.limits import Limits
from lightning_compress.apps.compare.sweep import read_sweep
from lightning_compress.apps.compare.table import markdown


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
    overrides: Sequence[str] = (),
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
    write_record(job, "finished", overrides=overrides)
    return job


def write_record(job: Path, status: str, error: str | None = None, overrides: Sequence[str] = ()) -> Path:
    """What the training application notes of a job when it begins and ends; by default it is named by its overrides."""
    job.mkdir(parents=True, exist_ok=True)
    given = list(overrides) or job.name.split(",")
    record = {"format": 1, "config_hash": "0", "overrides": given, "status": status, "error": error}
    write(job / "job.json", record)
    return job


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def write_nine(tmp_path: Path) -> Path:
    """Nine finished jobs, sparsity × bits, and a failed one with a hostile message."""
    for sparsity in (0.0, 0.5, 0.9):
        for bits in (None, 8, 2):
            acc = 0.98 - 0.01 * sparsity - (0.2 if bits == 2 else 0)
            packed = int(300_000 * (1 - 0.95 * sparsity) * (bits or 32) / 32)
            name = f"pruning.final_sparsity={sparsity},quantization={bits}"
            write_job(tmp_path, name, acc=acc, packed=packed, sparsity=sparsity, bits=bits, latency=0.03 + packed / 1e7)
    write_record(tmp_path / "a <b>failed</b> job", "failed", "</script><script>boom()</script>")
    return tmp_path


def pages(sweep_dir: Path) -> tuple[str, str]:
    """The comparison as a page and as Markdown."""
    sweep = read_sweep(sweep_dir, "packed")
    limits = Limits.of("test/acc", max_drop=(0.01, True), max_size=100_000.0)
    choice = choose(sweep, limits)
    return html(sweep, limits, choice), markdown(sweep, limits, choice)
