"""The report's pictures: matplotlib figures as SVG that takes its colours from the page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any

from lightning_compress.report import number_text as text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 72
_NARROW = 480
_MOST_LAYERS = 60
_DASHES = (0, (3, 2.2))

# matplotlib needs real colours; each is replaced by a property of the page, which differs in light and dark.
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--quiet)",
    "#030303": "var(--line)",
    "#040404": "var(--accent)",
    "#050505": "var(--second)",
    "#060606": "var(--wash)",
    "#070707": "var(--paper)",
    "#080808": "var(--part-1)",
    "#090909": "var(--part-2)",
    "#0a0a0a": "var(--part-3)",
    "#0b0b0b": "var(--part-4)",
    "#0c0c0c": "var(--part-5)",
}
INK, QUIET, LINE, ACCENT, SECOND, WASH, PAPER, *PARTS = _COLOURS


def schedule(report: Mapping[str, Any], width: int) -> str:
    """Sparsity asked and reached, bits of weights and activations, and the phases, over optimizer steps.

    Args:
        report: A report with a history of at least one point.
        width: Pixels.
    """
    history = report["history"]
    steps = [point["step"] for point in history]
    last = max(steps[-1], *(phase["end"] for phase in report["plan"]["phases"]), 1)
    narrow = width <= _NARROW
    with _style(f"schedule{width}"):
        figure = _figure(width, 300)
        figure.subplots_adjust(left=46 / width, right=1 - 14 / width, top=1 - 44 / 300, bottom=40 / 300, hspace=0.32)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        _phases(upper, lower, report["plan"]["phases"], last, narrow)

        asked = [point["sparsity_target"] * 100 for point in history]
        reached = [point["sparsity"] * 100 for point in history]
        # What was asked lies thin on top of what was reached, so that either shows where they differ.
        upper.step(steps, reached, where="post", color=ACCENT, linewidth=3.2, solid_capstyle="butt")
        upper.step(steps, asked, where="post", color=INK, linewidth=1.1, linestyle=_DASHES)
        upper.set_ylim(0, 100)
        upper.set_yticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
        upper.set_title("Sparsity", loc="left", pad=22)

        weights = [point["weight_bits"] for point in history]
        activations = [point["activation_bits"] for point in history]
        lower.step(steps, weights, where="post", color=ACCENT, linewidth=3.2, solid_capstyle="butt")
        lower.step(steps, activations, where="post", color=SECOND, linewidth=1.6, linestyle=_DASHES)
        lower.set_ylim(0, 36)
        lower.set_yticks(sorted({round(max(weights + activations)), round(weights[-1])}))
        lower.set_xlim(0, last)
        lower.set_title("Bits", loc="left", pad=5)
        _legend(upper, [("reached", ACCENT, "-"), ("asked", INK, _DASHES)], pad=22)
        _legend(lower, [("weights", ACCENT, "-"), ("activations", SECOND, _DASHES)], pad=5)
        lower.set_xlabel("optimizer steps", loc="right", labelpad=2)
        return _svg(figure, "Sparsity and bits over training")


def layers(report: Mapping[str, Any], width: int) -> str:
    """Sparsity asked and reached, bits, and bytes of each layer's weight.

    Args:
        report: A report with at least one weight.
        width: Pixels.
    """
    rows = shown_layers(report)
    narrow = width <= _NARROW
    height = 46 + 19 * len(rows)
    with _style(f"layers{width}"):
        figure = _figure(width, height)
        longest = 18 if narrow else 34
        names = [_shortened(row["name"].removesuffix(".weight"), longest) for row in rows]
        left = (14 + 6.6 * max(map(len, names))) / width
        figure.subplots_adjust(left=left, right=0.99, top=1 - 34 / height, bottom=8 / height, wspace=0.06)
        sparsity, bits, size = figure.subplots(1, 3, sharey=True, width_ratios=[4, 1.5, 3] if narrow else [5, 1.6, 4])
        places = range(len(rows))
        for axes in (sparsity, bits, size):
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.tick_params(length=0)
            for side in axes.spines.values():
                side.set_visible(False)
            axes.set_xticks([])
        sparsity.set_yticks([])
        sparsity.barh(places, [100] * len(rows), height=0.62, color=WASH)
        sparsity.barh(places, [row["sparsity"] * 100 for row in rows], height=0.62, color=ACCENT)
        for place, (name, row) in enumerate(zip(names, rows, strict=True)):
            across = sparsity.get_yaxis_transform()
            sparsity.text(-left * width / _inner(sparsity), place, name, va="center", ha="left", transform=across)
            if row["sparsity_target"] is not None:
                target = row["sparsity_target"] * 100
                sparsity.plot([target, target], [place - 0.42, place + 0.42], color=INK, linewidth=1.4)
            sparsity.text(104, place, f"{row['sparsity'] * 100:.0f}", va="center", ha="left", color=QUIET)
            precision = f"{row['weight_bits']}/{row['activation_bits']}"
            quantized = row["weight_bits"] <= 8
            bits.text(0.5, place, precision, va="center", ha="center", color=INK if quantized else QUIET)
            size.text(1.0, place, text.size(row["bytes_packed"]), va="center", ha="right", color=QUIET)
        sparsity.set_xlim(0, 124 if narrow else 116)
        bits.set_xlim(0, 1)
        largest = max(row["bytes_packed"] for row in rows) or 1
        share = 0.42 if narrow else 0.66
        size.set_xlim(0, 1)
        size.barh(places, [share * row["bytes_packed"] / largest for row in rows], height=0.62, color=PARTS[1])
        sparsity.set_title("Sparsity, %", loc="left", pad=8)
        bits.set_title("Bits", loc="center", pad=8)
        size.set_title("Packed", loc="left", pad=8)
        return _svg(figure, "Sparsity, bits and bytes of each layer")


def sizes(report: Mapping[str, Any], width: int) -> str:
    """Bytes of the dense model and of every file, broken down by part, on one axis.

    Args:
        report: A report with at least one artifact.
        width: Pixels.
    """
    dense = dense_bytes(report)
    bars: list[tuple[str, Mapping[str, int], int]] = [("dense float32", {}, dense)]
    bars += [(a["file"], a["breakdown"], a["bytes"]) for a in report["artifacts"]]
    height = 14 + 46 * len(bars)
    with _style(f"sizes{width}"):
        figure = _figure(width, height)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, 1.0)
        axes.set_ylim(height, 0)
        largest = max(total for _, _, total in bars) or 1
        for index, (name, breakdown, total) in enumerate(bars):
            top = 12 + 46 * index
            axes.text(0, top, _shortened(name, 40), va="center", ha="left", color=INK)
            axes.text(1, top, text.size(total), va="center", ha="right", color=INK, fontweight="bold")
            axes.barh(top + 17, 1.0, height=14, color=WASH)
            start = 0.0
            for (_, count), colour in zip(ranked(breakdown, total), _repeated(len(breakdown) + 1), strict=False):
                axes.barh(top + 17, count / largest, left=start, height=14, color=colour)
                start += count / largest
            if not breakdown:
                axes.barh(top + 17, total / largest, height=14, color=QUIET)
        return _svg(figure, "Bytes of the dense model and of each file")


def dense_bytes(report: Mapping[str, Any]) -> int:
    """Bytes of the dense model: as measured, or else of its parameters."""
    dense = report["results"]["dense"]
    if dense is not None and dense["bytes"] is not None:
        return int(dense["bytes"])
    return sum(int(row["bytes_dense"]) for row in report["layers"])


def shown_layers(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The weights that the picture shows: matrices and kernels, at most 60, the largest of them."""
    weights = [row for row in report["layers"] if len(row["shape"]) >= 2]
    kept = {id(row) for row in sorted(weights, key=lambda row: -row["numel"])[:_MOST_LAYERS]}
    return [row for row in weights if id(row) in kept]


def ranked(breakdown: Mapping[str, int], total: int) -> list[tuple[str, int]]:
    """Parts of a file, the largest first, at most five: the rest is summed up, so that the parts make the whole."""
    parts = sorted(breakdown.items(), key=lambda part: (-part[1], part[0]))
    if len(parts) > len(PARTS):
        parts = parts[: len(PARTS) - 1]
    rest = total - sum(count for _, count in parts)
    return [*parts, ("everything else", rest)] if rest > 0 else parts


def _repeated(count: int) -> list[str]:
    return [PARTS[min(index, len(PARTS) - 1)] for index in range(count)]


def _phases(upper: Axes, lower: Axes, phases: Sequence[Mapping[str, Any]], last: int, narrow: bool) -> None:
    for index, phase in enumerate(phases):
        share = (phase["end"] - phase["start"]) / last
        for axes in (upper, lower):
            if index % 2 == 0:
                axes.axvspan(phase["start"], phase["end"], color=WASH, linewidth=0, zorder=0)
        # About six pixels a letter: a name that does not fit is in the table of phases.
        if len(phase["name"]) * 6.2 < share * (300 if narrow else 760):
            upper.text(
                phase["start"] + 0.006 * last, 104, phase["name"], va="bottom", ha="left", color=QUIET, fontsize=11
            )


def _legend(axes: Axes, entries: Sequence[tuple[str, str, Any]], pad: int) -> None:
    """Names and strokes in one line above the axes, at the right."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, linestyle=style, linewidth=3 if style == "-" else 1.3)
        for _, colour, style in entries
    ]
    place = axes.get_window_extent().height
    axes.legend(
        handles,
        [name for name, _, _ in entries],
        loc="lower right",
        bbox_to_anchor=(1.0, 1 + pad / place),
        ncols=len(entries),
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.6,
        handletextpad=0.5,
        columnspacing=1.2,
        labelcolor=QUIET,
    )


@contextmanager
def _style(salt: str) -> Iterator[None]:
    import matplotlib

    settings: dict[Any, Any] = {
        "svg.hashsalt": salt,
        "svg.fonttype": "none",
        # Names of layers are no formulas.
        "text.parse_math": False,
        "font.size": 12,
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.titlecolor": INK,
        "axes.labelcolor": QUIET,
        "axes.edgecolor": LINE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": False,
        "text.color": INK,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": QUIET,
        "ytick.labelcolor": QUIET,
        "ytick.major.size": 0,
        "xtick.major.size": 3,
        "legend.fontsize": 11,
        "path.simplify": True,
    }
    with matplotlib.rc_context():
        # Not the user's settings: equal reports give equal pictures everywhere.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        yield


def _figure(width: int, height: int) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)


def _svg(figure: Figure, label: str) -> str:
    """Render a figure as an ``<svg>`` element that scales, with the page's fonts and colours."""
    buffer = StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # Names that nothing refers to would be there once for every picture of the page.
    used = {*re.findall(r"url\(#([^)]+)\)", svg), *re.findall(r'href="#([^"]+)"', svg)}
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    box = re.search(r'viewBox="([^"]*)"', svg)
    opening = (
        f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{label}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    svg = re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)
    svg = re.sub(r"font: (?:bold |700 )?([\d.]+px)[^;\"]*", _font, svg)
    for colour, name in _COLOURS.items():
        svg = svg.replace(colour, name)
    return svg.strip()


def _font(found: re.Match[str]) -> str:
    weight = "600" if "bold" in found[0] or "700" in found[0] else "400"
    return f"font-size: {found[1]}; font-weight: {weight}"


def _inner(axes: Axes) -> float:
    """Width of the axes in pixels."""
    return float(axes.get_window_extent().width)


def _shortened(name: str, length: int) -> str:
    if len(name) <= length:
        return name
    tail = (length - 1) * 2 // 3
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"
