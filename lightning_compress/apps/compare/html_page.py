"""The comparison as one HTML page that needs nothing else: no network, its drawing program inside."""

from __future__ import annotations

from pathlib import Path

from lightning_compress.apps.compare import table as listing
from lightning_compress.apps.compare.choose import Choice
from lightning_compress.apps.compare.limits import Limits
from lightning_compress.apps.compare.sweep import Sweep
from lightning_compress.report import number_text as text


def html(sweep: Sweep, limits: Limits, choice: Choice, *, beside: Path | None = None) -> str:
    """Render a comparison as HTML, light or dark as the reader's system is.

    Args:
        sweep: The jobs.
        limits: What was asked for.
        choice: What was chosen.
        beside: Directory in which the page will lie, for links to the reports; by default the sweep's.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    surroundings = Environment(
        loader=PackageLoader("lightning_compress.apps.compare", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    data = listing.as_dict(sweep, limits, choice, beside=beside)
    links = {job["name"]: job["report"] for job in data["jobs"]}
    return surroundings.get_template("page.html.j2").render(
        title=sweep.path.resolve().name,
        data={**data, "is_share": text.is_share(limits.metric)},
        choice=choice,
        limits=limits,
        figures=_figures(sweep, limits, choice),
        heads=listing.heads_for(sweep, limits),
        rows=list(listing.rows(sweep, limits, choice)),
        front={job.name for job in choice.front},
        kept={job.name for job in choice.kept},
        missing=[job for job in sweep.jobs if job.status != "finished"],
        links=links,
        count=listing.count(sweep),
    )


def _figures(sweep: Sweep, limits: Limits, choice: Choice) -> list[tuple[str, str, str]]:
    """The few numbers at the top, of the chosen job: value, what it is, and what to hold it against."""
    job = choice.job
    jobs = (str(len(sweep.jobs)), "jobs", f"{len(choice.kept)} within the limits, {len(choice.front)} on the front")
    if job is None:
        return [jobs]
    ratio = text.times(job.dense_bytes / job.bytes) if job.dense_bytes and job.bytes else text.NOTHING
    drop = job.drop(limits.metric, mode=limits.mode)
    change = None if drop is None else -drop if limits.mode == "max" else drop
    against = "" if change is None else f"{text.change(limits.metric, 0.0, change)} against dense"
    latency = "" if job.dense_latency_ms is None else f"dense {text.milliseconds(job.dense_latency_ms)}"
    return [
        (text.size(job.bytes), "chosen file", f"{ratio} smaller than {text.size(job.dense_bytes)}"),
        (text.metric(limits.metric, job.metrics[limits.metric]), limits.metric, against),
        (text.milliseconds(job.latency_ms), "median latency", latency),
        jobs,
    ]
