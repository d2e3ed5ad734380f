"""The jobs of a sweep's directory: settings and results of each, or why it cannot be compared."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning_compress.apps.compare.job_files import (
    hydra_overrides,
    mapping,
    number,
    other_file,
    read_json,
    setting,
    texts,
)
from lightning_compress.apps.train.outcome import RESULT_FILE
from lightning_compress.apps.train.sweep_jobs import JOB_FILE, SHARED, read_job
from lightning_compress.errors import CompressionError, closest
from lightning_compress.report import check
from lightning_compress.report import number_text as text
from lightning_compress.report.text import BEGINNINGS

REPORT_FILE = "report.json"
DEPLOYED = "deployed"

Status = Literal["finished", "failed", "unfinished"]


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        name: Its directory, relative to the sweep's.
        path: Its directory.
        status: Only a ``"finished"`` one has numbers.
        error: Why there are no numbers.
        pruning: What was pruned, in a few words.
        quantization: What was quantized, in a few words.
        sparsity: Share of zeros that was asked for; 0 without pruning.
        weight_bits: Bits of quantized weights, 32 without quantization.
        overrides: Setting → override, as on the command line.
        metrics: Of the deployed model.
        dense_metrics: Of the job's own dense control.
        dense_trained: Whether the control was trained, and is not merely what the fit began with.
        bytes: Of the file in the format that was asked for.
        files: Format → bytes.
        dense_bytes: Of the dense model in float32.
        latency_ms: Median, of the deployed file.
        dense_latency_ms: Median, of the dense model, measured at the same time.
        integer_share: Of the deployed file's multiply-adds, those in integer kernels, in [0, 1].
        flash: Bytes of the file for microcontrollers.
        ram: Bytes of RAM that it needs there.
        seconds: Training time of the compressed model.
        samples: On how many the metrics were computed.
        report: The report's page.
        failures: Limits of the job's own that do not hold.
    """

    name: str
    path: Path
    status: Status
    error: str | None = None
    pruning: str = "none"
    quantization: str = "none"
    sparsity: float = 0.0
    weight_bits: int = 32
    overrides: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    dense_metrics: Mapping[str, float] = field(default_factory=dict)
    dense_trained: bool = False
    bytes: int | None = None
    files: Mapping[str, int] = field(default_factory=dict)
    dense_bytes: int | None = None
    latency_ms: float | None = None
    dense_latency_ms: float | None = None
    integer_share: float | None = None
    flash: int | None = None
    ram: int | None = None
    seconds: float | None = None
    samples: int | None = None
    report: Path | None = None
    failures: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """Pruning and quantization, in a few words."""
        parts = [part for part in (self.pruning, self.quantization) if part != "none"]
        return ", ".join(parts) or "no compression"

    def drop(self, metric: str, *, mode: str = "max") -> float | None:
        """How much worse a metric is than that of the job's own dense control; negative if better."""
        if metric not in self.metrics or metric not in self.dense_metrics:
            return None
        difference = self.dense_metrics[metric] - self.metrics[metric]
        return difference if mode == "max" else -difference


@dataclass(frozen=True)
class Sweep:
    """All jobs of a directory.

    Attributes:
        path: The directory.
        jobs: Sorted by name.
        format: Whose bytes the jobs have.
    """

    path: Path
    jobs: tuple[Job, ...]
    format: str = DEPLOYED

    @property
    def finished(self) -> tuple[Job, ...]:
        """Jobs with numbers."""
        return tuple(job for job in self.jobs if job.status == "finished")

    def metric(self, wanted: str | None = None) -> str:
        """The metric to compare by: the one wanted, or else the first share that any job has.

        Raises:
            CompressionError: No job has it, or there is none at all.
        """
        names = list(dict.fromkeys(name for job in self.finished for name in job.metrics))
        if wanted is None and names:
            return next((name for name in names if text.is_share(name)), names[0])
        if wanted is None or wanted not in names:
            fix = closest(wanted or "", names) if names else "No job has any; export with verify=true."
            raise CompressionError.field("compare --metric", expected="a metric of the reports", got=wanted, fix=fix)
        return wanted


def read_sweep(path: str | Path, format: str = DEPLOYED) -> Sweep:
    """Read the jobs under a directory, finished, failed and half-finished ones.

    A job is a directory with ``job.json``, ``result.json`` or Hydra's ``.hydra``; where there are none, one with
    ``report.json``.

    Args:
        path: Directory of a sweep, of a run, or of several exports.
        format: Whose bytes count: ``"deployed"``, or a format such as ``"packed"``.

    Raises:
        CompressionError: There is no such directory, or no job in it, or no job wrote that format.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CompressionError.field(
            "compare SWEEP_DIR", expected="a directory of jobs", got=str(path), fix="There is no such directory."
        )
    jobs = tuple(_read(found, folder, format) for found in _directories(folder))
    if not jobs:
        raise CompressionError.field(
            "compare SWEEP_DIR",
            expected="a directory with finished jobs, such as multirun/digits_grid",
            got=str(path),
            fix=f"There is no {JOB_FILE}, {RESULT_FILE} or {REPORT_FILE} in it or below.",
        )
    known = sorted({name for job in jobs for name in job.files})
    if format != DEPLOYED and known and format not in known:
        raise CompressionError.field(
            "compare --format", expected=f"one of {', '.join([DEPLOYED, *known])}", got=format, fix=""
        )
    return Sweep(folder, jobs, format)


def _directories(folder: Path) -> list[Path]:
    """Directories of jobs; none lies in another, and what jobs share is no job."""
    marks = {path.parent for mark in (JOB_FILE, RESULT_FILE, ".hydra") for path in folder.rglob(mark)}
    marks = {path for path in marks if SHARED not in path.relative_to(folder).parts}
    marks |= {
        path.parent
        for path in folder.rglob(REPORT_FILE)
        if not path.parent.name.startswith(".")
        and not any(parent in marks for parent in (path.parent, *path.parent.parents))
    }
    outermost = [path for path in marks if not any(parent in marks for parent in path.parents)]
    return sorted(outermost, key=lambda path: _natural(path.relative_to(folder).as_posix()))


def _natural(name: str) -> list[tuple[int, float, str]]:
    """Numbers in names sort as numbers."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(0, float(part), "") if index % 2 else (1, 0.0, part) for index, part in enumerate(parts)]


def _read(path: Path, folder: Path, format: str) -> Job:
    name = path.relative_to(folder).as_posix()
    name = path.resolve().name if name == "." else name
    record = read_job(path) or {}
    lines = texts(record.get("overrides")) or hydra_overrides(path)
    overrides = {setting(line): line for line in lines}
    if record.get("status") == "failed":
        return Job(name, path, "failed", str(record.get("error") or "no reason was noted"), overrides=overrides)
    try:
        result = read_json(path / RESULT_FILE) if (path / RESULT_FILE).exists() else None
        if result is None and (record or (path / ".hydra").exists()):
            return Job(name, path, "unfinished", "it has not ended, or was killed", overrides=overrides)
        report = _report(path, folder, result)
        if report is None:
            return Job(name, path, "unfinished", "it ended without an export; run it with export=default")
        content = read_json(report)
        check(content)
        if (other := other_file(report.parent, content["artifacts"])) is not None:
            reason = f"{other} is not the file that its report speaks of: an export was stopped, or the file changed"
            return Job(name, path, "unfinished", reason, overrides=overrides)
        return _job(name, path, content, report, result or {}, format, overrides)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = str(error) if isinstance(error, CompressionError) else f"its files cannot be read ({error})"
        return Job(name, path, "unfinished", " ".join(reason.split()), overrides=overrides)


def _job(
    name: str,
    path: Path,
    report: Mapping[str, Any],
    report_path: Path,
    result: Mapping[str, Any],
    format: str,
    overrides: Mapping[str, str],
) -> Job:
    dense, deployed = report["results"]["dense"], report["results"]["deployed"]
    files = {artifact["format"]: int(artifact["bytes"]) for artifact in report["artifacts"]}
    size = files.get(format)
    if format == DEPLOYED:
        size = None if deployed is None else deployed["bytes"]
    if size is None or deployed is None:
        return Job(name, path, "unfinished", f"it wrote no {format} file", overrides=overrides, files=files)
    micro = mapping(report.get("microcontroller"))
    pruning, quantization = (mapping(report["plan"][name]) for name in ("pruning", "quantization"))
    sparsity = float(number(pruning.get("final_sparsity")) or 0.0)
    seconds = number(mapping(result.get("seconds")).get("compressed"))
    shares = {"sparsity": sparsity, "integer_share": number(report.get("integer_share"))}
    for what, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            raise CompressionError.field(f"{report_path}: {what}", expected="a share from 0 to 1", got=share)
    if seconds is not None and seconds < 0:
        raise CompressionError.field(f"{path / RESULT_FILE}: seconds", expected="a number of at least 0", got=seconds)
    page = report_path.with_suffix(".html")
    return Job(
        name=name,
        path=path,
        status="finished",
        pruning=_pruning(pruning),
        quantization=_quantization(quantization),
        sparsity=sparsity,
        weight_bits=int(number(quantization.get("weight_bits")) or 32),
        overrides=overrides,
        metrics=_finite(deployed["metrics"]),
        dense_metrics={} if dense is None else _finite(dense["metrics"]),
        dense_trained=dense is not None and dense["source"] not in BEGINNINGS,
        bytes=int(size),
        files=files,
        dense_bytes=None if dense is None else dense["bytes"],
        latency_ms=_median(deployed),
        dense_latency_ms=_median(dense),
        integer_share=shares["integer_share"],
        flash=None if micro.get("arena_bytes") is None else _count(micro.get("flash_bytes")),
        ram=_count(micro.get("arena_bytes")),
        seconds=seconds,
        samples=_count(report.get("samples")),
        report=page if page.is_file() else None,
        failures=tuple(texts(report.get("failures"))),
    )


def _report(path: Path, folder: Path, result: Mapping[str, Any] | None) -> Path | None:
    """The job's report: in its directory, which may have been moved since, or where the job says that it is.

    Raises:
        CompressionError: It is outside of the sweep's directory, where a job of anybody could name any file.
    """
    # Directories with a dot hold what an export was killed at.
    whole = (found for found in path.rglob(REPORT_FILE) if not found.parent.name.startswith("."))
    inside = sorted(whole, key=lambda found: (len(found.parts), found))
    said = (result or {}).get("report")
    found = inside[0] if inside else Path(said) if isinstance(said, str) else None
    if found is None:
        return None
    if not found.resolve().is_relative_to(folder.resolve()):
        raise CompressionError(
            f"its report is {found}, outside of {folder}: compare a directory that holds both, or move it there"
        )
    return found if found.is_file() else None


def _pruning(settings: Mapping[str, Any]) -> str:
    sparsity = number(settings.get("final_sparsity"))
    if not sparsity:
        return "none"
    share = f"{100 * sparsity:.4g} %"
    pattern, distribution = settings.get("pattern", "unstructured"), settings.get("distribution", "global")
    kind = distribution if pattern == "unstructured" else pattern
    return f"{share} {kind}"


def _quantization(settings: Mapping[str, Any]) -> str:
    weights, activations = settings.get("weight_bits"), settings.get("activation_bits")
    return "none" if not weights and not activations else f"w{weights or 32}a{activations or 32}"


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def _count(value: Any) -> int | None:
    found = number(value)
    if found is not None and found < 0:
        raise CompressionError(f"damaged, with a count of {found}.")
    return None if found is None else int(found)


def _median(result: Mapping[str, Any] | None) -> float | None:
    latency = result and result["latency_ms"]
    return float(latency["median"]) if latency else None
