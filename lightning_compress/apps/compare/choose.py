"""The choice among a sweep's jobs, in plain words, with its reasons and what to try next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from lightning_compress.apps.compare.limits import Limits
from lightning_compress.apps.compare.pareto import front
from lightning_compress.apps.compare.sweep import DEPLOYED, Job, Sweep
from lightning_compress.apps.configuration.overrides import quoted
from lightning_compress.report import number_text as text

_OBJECTIVES = {"bytes": "smallest", "metric": "best in {metric}", "latency": "fastest"}
_LEAST_SPARSITY, _MOST_SPARSITY = 0.5, 0.99


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why.

    Attributes:
        job: ``None`` if no job keeps the limits.
        kept: The jobs that keep them, the best first.
        front: Jobs that no other one beats in metric, bytes and latency together.
        verdict: One sentence.
        reasons: One sentence each.
        next: What to try next: a sentence, and a command where there is one.
    """

    job: Job | None
    kept: tuple[Job, ...]
    front: tuple[Job, ...]
    verdict: str
    reasons: tuple[str, ...]
    next: tuple[tuple[str, str | None], ...]


def choose(sweep: Sweep, limits: Limits) -> Choice:
    """Choose the job that keeps all limits and is best at the objective.

    Equal jobs are told apart by bytes, then metric, then latency, then name, so that the choice is always the same.
    """
    jobs = [job for job in sweep.finished if limits.metric in job.metrics]
    kept = tuple(sorted((job for job in jobs if not limits.violations(job)), key=lambda job: _rank(job, limits)))
    points = [(job.metrics[limits.metric], job.bytes, job.latency_ms) for job in jobs]
    best = tuple(jobs[index] for index in front(points, maximize=[limits.mode == "max", False, False]))
    if not kept:
        reasons, following = tuple(_near(jobs, limits)), (*_failed(sweep), *_remedies(jobs, sweep, limits))
        return Choice(None, kept, best, _nothing(jobs, limits), reasons, following)
    job = kept[0]
    role = _OBJECTIVES[limits.objective].format(metric=limits.metric)
    others = f"the {role} of the {len(kept)} jobs (of {len(jobs)}) that keep the limits"
    verdict = f"Take {job.method}: {others if len(kept) > 1 else 'it alone keeps the limits'}."
    reasons, following = tuple(_reasons(kept, sweep, limits)), tuple(_next(kept, jobs, sweep, limits))
    return Choice(job, kept, best, verdict, reasons, following)


def _rank(job: Job, limits: Limits) -> tuple[float | str, ...]:
    value = job.metrics[limits.metric]
    costs = {
        "bytes": float(job.bytes or 0),
        "metric": -value if limits.mode == "max" else value,
        "latency": math.inf if job.latency_ms is None else job.latency_ms,
    }
    return (costs[limits.objective], *costs.values(), job.name)


def _reasons(kept: Sequence[Job], sweep: Sweep, limits: Limits) -> Iterator[str]:
    job = kept[0]
    smaller = "" if not job.dense_bytes or not job.bytes else f", {text.times(job.dense_bytes / job.bytes)} smaller"
    kind = "" if sweep.format == DEPLOYED else f" ({sweep.format} file)"
    allowed = "" if limits.max_size is None else f"; at most {text.size(limits.max_size)} is allowed"
    yield f"Size: {text.size(job.bytes)}{kind}{smaller} than dense float32{allowed}."
    value, drop = job.metrics[limits.metric], job.drop(limits.metric, mode=limits.mode)
    line = f"{limits.metric}: {text.metric(limits.metric, value)}"
    if drop is not None:
        side = limits.worse if drop > 0 else limits.better
        line += f", {f'{limits.loss(abs(drop))} {side}' if drop else 'the same as'} its dense control"
        most = limits.allowed_drop(job)
        line += "" if most is None else f"; at most {limits.loss(most)} may be lost"
    yield line + "."
    if job.latency_ms is not None:
        dense = job.dense_latency_ms
        slower = "" if dense is None or job.latency_ms <= dense else "slower than "
        beside = "" if dense is None else f", {slower}dense {text.milliseconds(dense)}"
        allowed = "" if limits.max_latency is None else f"; at most {limits.max_latency:g} ms is allowed"
        yield f"Latency: {text.milliseconds(job.latency_ms)}{beside}, on the machine of the sweep{allowed}."
    if job.ram is not None:
        yield f"On a microcontroller: {text.size(job.flash)} of flash for the file, {text.size(job.ram)} of RAM."
    if len(kept) > 1:
        other = kept[1]
        yield (
            f"Next best: {other.method}, {text.size(other.bytes)}, "
            f"{text.metric(limits.metric, other.metrics[limits.metric])}, {text.milliseconds(other.latency_ms)}."
        )
    if not job.dense_trained and drop is not None:
        yield (
            "Its dense control is the model as it was when the fit began. To compare with one that was trained as "
            "long, give dense_baseline=true."
        )
    if job.samples and text.is_share(limits.metric):
        yield (
            f"One of the {job.samples} samples is {100 / job.samples:.2f} points, so differences of a few samples are "
            f"chance; and the best of {len(sweep.finished)} jobs looks a little better than it is."
        )


def _next(kept: Sequence[Job], jobs: Sequence[Job], sweep: Sweep, limits: Limits) -> Iterator[tuple[str, str | None]]:
    job = kept[0]
    yield from _failed(sweep)
    packed = min(kept, key=lambda other: (other.files.get("packed", math.inf), other.name))
    if sweep.format == DEPLOYED and packed.files.get("packed", math.inf) < (job.bytes or 0):
        yield (
            f"Zeros and small integers do not shrink an ONNX file. Where the model is stored or sent packed, "
            f"{packed.method} takes {text.size(packed.files['packed'])}: compare by that file.",
            f"lightning-compress compare {shlex.quote(str(sweep.path))} --format packed",
        )
    drop, most = job.drop(limits.metric, mode=limits.mode), limits.allowed_drop(job)
    alike = [other for other in jobs if other.quantization == job.quantization and other.bytes and other.sparsity]
    sparser = [other for other in alike if other.sparsity > job.sparsity]
    if not _shrinks(alike):
        pass
    elif sparser:
        other = min(sparser, key=lambda found: found.sparsity)
        if any(found.limit == "drop" for found in limits.violations(other)):
            between = round(1 - math.sqrt((1 - job.sparsity) * (1 - other.sparsity)), 3)
            lost = limits.loss(other.drop(limits.metric, mode=limits.mode) or 0.0)
            yield (
                f"{other.sparsity:.4g} sparsity with {job.quantization} loses {lost}, {job.sparsity:.4g} keeps the "
                f"limit: try {between:g}.",
                _command(job if job.sparsity else other, sweep, {"pruning.final_sparsity": f"{between:g}"}),
            )
    elif drop is not None and most is not None and drop <= most / 2 and job.sparsity < _MOST_SPARSITY:
        more = max(_LEAST_SPARSITY, round(1 - (1 - job.sparsity) / 2, 4))
        method = {} if job.sparsity else {"pruning": "global"}
        yield (
            f"No job is sparser, and only {limits.loss(max(drop, 0.0))} is lost: try sparsity {more:g}.",
            _command(job, sweep, {**method, "pruning.final_sparsity": f"{more:g}"}),
        )
    fewer = [other for other in jobs if other.weight_bits < job.weight_bits and other.sparsity == job.sparsity]
    lossy = [other for other in fewer if any(found.limit == "drop" for found in limits.violations(other))]
    if lossy:
        other = max(lossy, key=lambda found: (found.weight_bits, found.metrics[limits.metric]))
        lost = limits.loss(other.drop(limits.metric, mode=limits.mode) or 0.0)
        yield (
            f"{other.quantization} at the same sparsity takes {text.size(other.bytes)} but loses {lost}. Low "
            f"precisions gain most from longer training.",
            _longer(other, sweep),
        )


def _shrinks(jobs: Sequence[Job]) -> bool:
    """Whether the sparsest of the jobs has a clearly smaller file than the densest."""
    ordered = sorted(jobs, key=lambda job: job.sparsity)
    return len(ordered) < 2 or (ordered[-1].bytes or 0) < 0.95 * (ordered[0].bytes or 0)


def _remedies(jobs: Sequence[Job], sweep: Sweep, limits: Limits) -> Iterator[tuple[str, str | None]]:
    """What to try when nothing keeps the limits."""
    smallest = min((job.files.get("packed", math.inf) for job in jobs), default=math.inf)
    if sweep.format == DEPLOYED and limits.max_size is not None and smallest <= limits.max_size:
        yield (
            f"Packed files keep the limit on size: the smallest takes {text.size(smallest)}. Where the model is stored "
            f"or sent packed, compare by them.",
            f"lightning-compress compare {shlex.quote(str(sweep.path))} --format packed",
        )
    broken = {found.limit for job in jobs for found in limits.violations(job)}
    if "drop" in broken:
        yield "Less loss: train longer (trainer.max_epochs), prune less, or give the low precisions more bits.", None
    if "size" in broken:
        yield "A smaller file: more sparsity and fewer bits in a packed file, or a smaller model.", None
    if "latency" in broken:
        yield (
            "Less time: scattered zeros do not make a model faster. Integers (quantization=w8a8), whole channels "
            "removed, or a smaller model do.",
            None,
        )
    if broken & {"flash", "ram"}:
        yield (
            "Memory of a microcontroller is known of LiteRT files whose operators its interpreter has: "
            "quantization=w8a8 quantization.backend=litert export.formats=[litert], with tflite-micro installed. Fewer "
            "channels (pruning=channel) need less of both.",
            None,
        )


def _nothing(jobs: Sequence[Job], limits: Limits) -> str:
    if not jobs:
        return "There is nothing to choose from: no job has finished with this metric."
    return f"None of the {len(jobs)} jobs keeps the limits: {', '.join(limits.described())}."


def _near(jobs: Sequence[Job], limits: Limits) -> Iterator[str]:
    """The jobs that come nearest, and which limit is to blame."""
    broken = {job.name: limits.violations(job) for job in jobs}
    for limit in ("drop", "size", "latency", "flash", "ram"):
        count = sum(all(found.limit != limit for found in broken[job.name]) for job in jobs)
        if count < len(jobs):
            yield f"The limit on {limit} alone is kept by {count} of {len(jobs)} jobs."
    nearest = sorted(jobs, key=lambda job: (max(found.excess for found in broken[job.name]), _rank(job, limits)))
    for job in nearest[:2]:
        yield f"Near: {job.method}; {', '.join(found.text for found in broken[job.name])}."


def _failed(sweep: Sweep) -> Iterator[tuple[str, str | None]]:
    missing = len(sweep.jobs) - len(sweep.finished)
    if missing:
        have = "has" if missing == 1 else "have"
        yield f"{missing} of {len(sweep.jobs)} jobs {have} no numbers. The sweep's command again runs only those.", None


def _longer(job: Job, sweep: Sweep) -> str | None:
    epochs = job.overrides.get("trainer.max_epochs", "").partition("=")[2]
    return _command(job, sweep, {"trainer.max_epochs": str(2 * int(epochs))}) if epochs.isdigit() else None


def _command(job: Job, sweep: Sweep, changed: dict[str, str]) -> str | None:
    """The command of another job, from the overrides of one that is there."""
    if not job.overrides:
        return None
    changed = {**changed, "hydra.sweep.dir": quoted(_directory(job, sweep))}
    overrides = {**job.overrides, **{key: f"{key}={value}" for key, value in changed.items()}}
    return shlex.join(["lightning-compress", "train", "-m", *overrides.values()])


def _directory(job: Job, sweep: Sweep) -> Path:
    """The sweep's, if its jobs lie in directories named after their overrides; a number there is taken already."""
    if "sweep" in job.overrides and "=" in job.name:
        return sweep.path
    name = sweep.path.resolve().name
    beside = (sweep.path.parent / f"{name}_{number}" for number in count(2))
    return next(path for path in beside if not path.exists())
