"""Pictures as PNG, for loggers: the schedule of a run, and the Pareto front of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

from lightning_compress.report import number_text as text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PAPER, _INK, _QUIET, _LINE, _ACCENT, _SECOND = "#fdfcfa", "#1d1c1a", "#6c6862", "#dcd8d0", "#2a6f6b", "#b3712a"
_DPI = 144


def schedule(history: Sequence[Mapping[str, Any]]) -> bytes:
    """Sparsity asked and reached, and bits of weights and activations, over optimizer steps.

    Args:
        history: At least one point of a monitor's history.

    Returns:
        A PNG file.
    """
    steps = [point["step"] for point in history]
    with _style():
        figure = _figure(7.5, 4.0)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        for key, label, colour, width in (
            ("sparsity", "reached", _ACCENT, 3.0),
            ("sparsity_target", "asked", _INK, 1.0),
        ):
            values = [100 * point[key] for point in history]
            upper.step(steps, values, where="post", color=colour, linewidth=width, label=label)
        upper.set_ylim(0, 100)
        _title(upper, "Sparsity, %")
        for key, label, colour in (
            ("weight_bits", "weights", _ACCENT),
            ("activation_bits", "activations", _SECOND),
        ):
            lower.step(steps, [point[key] for point in history], where="post", color=colour, label=label)
        lower.set_ylim(0, 36)
        lower.set_yticks([0, 8, 32])
        _title(lower, "Bits")
        lower.set_xlabel("optimizer steps")
        return _png(figure)


def pareto(
    jobs: Sequence[Mapping[str, Any]], *, metric: str, choice: str | None, front: Sequence[str], more: bool
) -> bytes:
    """Metric against bytes of all jobs, with the front and the choice.

    Args:
        jobs: Finished jobs with ``name``, ``value`` and ``bytes``.
        metric: Name of the metric.
        choice: Name of the chosen job.
        front: Names of the jobs on the front.
        more: Whether more of the metric is better.

    Returns:
        A PNG file.
    """
    scale = 100.0 if text.is_share(metric) else 1.0
    places = {job["name"]: (job["bytes"] / 1000, scale * job["value"]) for job in jobs}
    with _style():
        figure = _figure(7.5, 4.5)
        axes = figure.subplots()
        for name, (size, value) in places.items():
            best = name in front
            axes.scatter(size, value, s=36, color=_ACCENT if best else _LINE, edgecolor=_PAPER, zorder=3 if best else 2)
        # The front is one of metric, bytes and latency; the line joins what is best in the two that are shown.
        line: list[tuple[float, float]] = []
        for size, value in sorted(places.values(), key=lambda place: (place[0], -place[1] if more else place[1])):
            if not line or (value > line[-1][1] if more else value < line[-1][1]):
                line.append((size, value))
        axes.step(*zip(*line, strict=True), where="post", color=_INK, linewidth=1.0, alpha=0.6)
        if choice in places:
            axes.scatter(*places[choice], s=150, facecolor="none", edgecolor=_INK, linewidth=1.6, zorder=4)
            axes.annotate("the choice", places[choice], xytext=(10, -14), textcoords="offset points", color=_INK)
        axes.set_xscale("log")
        axes.set_xlabel("file, kB")
        unit = ", %" if scale == 100 else ""
        axes.set_title(f"{metric}{unit} against size", loc="left")
        return _png(figure)


def _title(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, borderpad=0, borderaxespad=0.3)


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    settings: dict[Any, Any] = {
        "figure.facecolor": _PAPER,
        "axes.facecolor": _PAPER,
        "axes.edgecolor": _LINE,
        "axes.labelcolor": _QUIET,
        "axes.titleweight": "bold",
        "axes.titlesize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.labelcolor": _QUIET,
        "text.color": _INK,
        "xtick.color": _QUIET,
        "ytick.color": _QUIET,
        "font.size": 10,
        # Names of layers are no formulas.
        "text.parse_math": False,
    }
    with matplotlib.rc_context():
        # Not the user's settings: equal runs give equal pictures everywhere.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _png(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
