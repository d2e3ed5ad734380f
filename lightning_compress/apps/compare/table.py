"""A comparison as JSON types, as rows of texts, and as Markdown."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_compress.apps.compare.choose import Choice
from lightning_compress.apps.compare.limits import Limits
from lightning_compress.apps.compare.sweep import Job, Sweep
from lightning_compress.report import number_text as text
from lightning_compress.report.markdown_text import code, escaped

FORMAT = 1
HEADS = ("Pruning", "Bits", "Metric", "Change", "Size", "Smaller", "Latency", "int8", "Flash", "RAM", "Training")
"""``int8`` is the share of the deployed file's multiply-adds in integer kernels. Flash and RAM are a microcontroller's,
shown where any job has them."""


def as_dict(sweep: Sweep, limits: Limits, choice: Choice, *, beside: Path | None = None) -> dict[str, Any]:
    """Everything that a comparison found.

    Args:
        sweep: The jobs.
        limits: What was asked for.
        choice: What was chosen.
        beside: Directory from which paths of reports are given; by default the sweep's.
    """
    kept, best = {job.name for job in choice.kept}, {job.name for job in choice.front}
    return {
        "format": FORMAT,
        "sweep_dir": str(sweep.path),
        "bytes_of": sweep.format,
        "metric": limits.metric,
        "mode": limits.mode,
        "objective": limits.objective,
        "limits": {
            "max_drop": limits.max_drop,
            "max_drop_is_relative": limits.relative,
            "max_size": limits.max_size,
            "max_latency_ms": limits.max_latency,
            "max_flash": limits.max_flash,
            "max_ram": limits.max_ram,
            "assumed": limits.assumed,
        },
        "counts": {
            status: sum(job.status == status for job in sweep.jobs) for status in ("finished", "failed", "unfinished")
        },
        "choice": None if choice.job is None else choice.job.name,
        "verdict": choice.verdict,
        "reasons": list(choice.reasons),
        "next": [{"text": sentence, "command": command} for sentence, command in choice.next],
        "kept": [job.name for job in choice.kept],
        "front": [job.name for job in choice.front],
        "jobs": [_job(job, limits, job.name in kept, job.name in best, beside or sweep.path) for job in sweep.jobs],
    }


def _job(job: Job, limits: Limits, kept: bool, best: bool, beside: Path) -> dict[str, Any]:
    drop = job.drop(limits.metric, mode=limits.mode)
    return {
        "name": job.name,
        "status": job.status,
        "error": job.error,
        "method": job.method,
        "pruning": job.pruning,
        "quantization": job.quantization,
        "sparsity": job.sparsity,
        "weight_bits": job.weight_bits,
        "overrides": list(job.overrides.values()),
        "value": job.metrics.get(limits.metric),
        # Metrics are computed in float32; further digits are noise.
        "drop": None if drop is None else round(drop, 7),
        "metrics": dict(job.metrics),
        "dense_metrics": dict(job.dense_metrics),
        "bytes": job.bytes,
        "files": dict(job.files),
        "dense_bytes": job.dense_bytes,
        "latency_ms": job.latency_ms,
        "dense_latency_ms": job.dense_latency_ms,
        "integer_share": job.integer_share,
        "flash": job.flash,
        "ram": job.ram,
        "seconds": job.seconds,
        "report": None if job.report is None else Path(os.path.relpath(job.report, beside)).as_posix(),
        "keeps_limits": kept,
        "on_front": best,
        "failures": list(job.failures),
    }


def rows(sweep: Sweep, limits: Limits, choice: Choice) -> Iterator[tuple[Job, list[str]]]:
    """Finished jobs and their texts under ``heads_for``, the best at the objective first, those beyond a limit last."""
    wanted = _columns(sweep)
    kept = list(choice.kept)
    rest = [job for job in sweep.finished if job not in kept]
    for job in [*kept, *sorted(rest, key=lambda job: (job.bytes or 0, job.name))]:
        found = cells(job, limits)
        yield job, [found[index] for index in wanted]


def cells(job: Job, limits: Limits) -> list[str]:
    """A job's texts under ``HEADS``."""
    drop = job.drop(limits.metric, mode=limits.mode)
    # Shown as the change of the metric itself: a loss has a minus where more is better.
    change = None if drop is None else -drop if limits.mode == "max" else drop
    ratio = job.dense_bytes / job.bytes if job.dense_bytes and job.bytes else None
    return [
        job.pruning,
        "float" if job.quantization == "none" else job.quantization,
        text.metric(limits.metric, job.metrics.get(limits.metric)),
        text.NOTHING if change is None else (text.change(limits.metric, 0.0, change) or "").removesuffix(" points"),
        text.size(job.bytes),
        text.times(ratio),
        text.milliseconds(job.latency_ms),
        text.NOTHING if job.integer_share is None else text.percent(job.integer_share, 0),
        text.size(job.flash),
        text.size(job.ram),
        text.NOTHING if job.seconds is None else f"{job.seconds:.0f} s",
    ]


def markdown(sweep: Sweep, limits: Limits, choice: Choice) -> str:
    """The comparison as GitHub-flavoured Markdown."""
    return "\n".join(_markdown(sweep, limits, choice)) + "\n"


def _markdown(sweep: Sweep, limits: Limits, choice: Choice) -> Iterator[str]:
    yield f"# Comparison of {escaped(sweep.path.resolve().name)}"
    yield ""
    yield f"**{escaped(choice.verdict)}**"
    yield ""
    yield from (f"- {escaped(reason)}" for reason in choice.reasons)
    if choice.next:
        yield from ("", "## What to try next", "")
        for sentence, command in choice.next:
            yield f"- {escaped(sentence)}" + ("" if command is None else f" {code(command)}")
    yield from ("", f"## {count(sweep)}", "")
    limited = escaped(", ".join(limits.described()) or "none")
    yield f"Limits: {limited}. ◆ is on the Pareto front, **bold** is the choice."
    yield ""
    heads = ["", *map(escaped, heads_for(sweep, limits))]
    yield f"| {' | '.join(heads)} |"
    yield f"| --- | --- | --- |{' ---: |' * (len(heads) - 3)}"
    best = {job.name for job in choice.front}
    for job, found in rows(sweep, limits, choice):
        chosen = choice.job is not None and job.name == choice.job.name
        line = [f"**{escaped(cell)}**" if chosen else escaped(cell) for cell in found]
        yield f"| {'◆' if job.name in best else ''} | {' | '.join(line)} |"
    missing = [job for job in sweep.jobs if job.status != "finished"]
    if missing:
        yield from ("", "## Jobs without numbers", "")
        yield from (f"- {code(job.name)} {job.status}: {escaped(job.error)}" for job in missing)


def heads_for(sweep: Sweep, limits: Limits) -> Sequence[str]:
    """Those of ``HEADS`` that a sweep has something for, with the metric's own name, and the unit of its change."""
    names = {"Metric": limits.metric, "Change": "Points" if text.is_share(limits.metric) else "Change"}
    return [names.get(HEADS[index], HEADS[index]) for index in _columns(sweep)]


def _columns(sweep: Sweep) -> list[int]:
    known = any(job.ram is not None for job in sweep.jobs)
    return [index for index, head in enumerate(HEADS) if known or head not in ("Flash", "RAM")]


def count(sweep: Sweep) -> str:
    """How many jobs there are, and of which kind.

    Example:
        >>> count(Sweep(Path("."), ()))
        '0 jobs'
    """
    parts = [
        f"{number} {status}"
        for status in ("failed", "unfinished")
        if (number := sum(job.status == status for job in sweep.jobs))
    ]
    total = f"{len(sweep.jobs)} job{'' if len(sweep.jobs) == 1 else 's'}"
    return f"{total}, {', '.join(parts)}" if parts else total
