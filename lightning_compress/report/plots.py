"""The report's pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_compress.report import number_text as text
from lightning_compress.report import text as text_of
from lightning_compress.report.svg import ACCENT, INK, PARTS, QUIET, SECOND, WASH, blank, page_style, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NARROW = 480
_MOST_LAYERS = 60
_DASHES = (0, (3, 2.2))


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
    with page_style(f"schedule{width}"):
        figure = blank(width, 300)
        figure.subplots_adjust(left=52 / width, right=1 - 14 / width, top=1 - 44 / 300, bottom=40 / 300, hspace=0.32)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        _phases([upper, lower], report["plan"]["phases"], last, narrow)

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
        return svg(figure, "Sparsity and bits over training")


def training(report: Mapping[str, Any], width: int) -> str:
    """The metric that the headline speaks of and the loss, at each validation, over optimizer steps.

    Args:
        report: A report for which ``curves`` finds any.
        width: Pixels.
    """
    found, phases = curves(report), report["plan"]["phases"]
    last = max(step for lines in found.values() for steps, _ in lines.values() for step in steps)
    last = max(last, *(phase["end"] for phase in phases), 1)
    height = 50 + 130 * len(found)
    with page_style(f"training{width}"):
        figure = blank(width, height)
        figure.subplots_adjust(
            left=52 / width, right=1 - 14 / width, top=1 - 44 / height, bottom=40 / height, hspace=0.42
        )
        panels = list(figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0])
        _phases(panels, phases, last, width <= _NARROW)
        for axes, (name, lines) in zip(panels, found.items(), strict=True):
            factor = 100 if text.is_share(name) else 1
            strokes = zip(lines.items(), [(ACCENT, "-"), (SECOND, _DASHES), (QUIET, (0, (1, 1.5)))], strict=False)
            entries = []
            for (label, (steps, values)), (colour, style) in strokes:
                axes.plot(steps, [factor * value for value in values], color=colour, linestyle=style, linewidth=1.8)
                entries.append((label, colour, style))
            axes.set_title(f"{name}, %" if factor == 100 else name, loc="left", pad=22 if axes is panels[0] else 5)
            axes.margins(y=0.12)
            axes.set_xlim(0, last)
            _legend(axes, entries, pad=22 if axes is panels[0] else 5)
        panels[-1].set_xlabel("optimizer steps", loc="right", labelpad=2)
        return svg(figure, "Metric and loss over training")


def curves(report: Mapping[str, Any]) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """What ``training`` draws: the last part of a metric's name → its first part, as ``val`` → steps and values.

    Two metrics at most: the headline's and the loss, each with up to three lines of at least two points.
    """
    main = text_of.main_metric(report)
    wanted = [*([] if main is None else [_tail(main)]), "loss"]
    lines: dict[str, tuple[list[int], list[float]]] = {}
    for point in report["evaluations"]:
        for name, value in point["metrics"].items():
            steps, values = lines.setdefault(name, ([], []))
            steps.append(point["step"])
            values.append(value)
    found: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for tail in dict.fromkeys(wanted):
        # Validation first, whatever the order in which a module logs.
        names = sorted(
            (n for n, (steps, _) in lines.items() if _tail(n) == tail and len(steps) > 1),
            key=lambda n: (not n.startswith("val"), n),
        )
        if names:
            found[tail] = {_head(name, tail): lines[name] for name in names[:3]}
    return found


def _tail(name: str) -> str:
    """The last part of a metric's name; a value of one batch (``_step``) has none."""
    return "" if name.endswith("_step") else re.split(r"[/_]", name.removesuffix("_epoch"))[-1]


def _head(name: str, tail: str) -> str:
    return name.removesuffix("_epoch").removesuffix(tail).rstrip("/_") or tail


def layers(report: Mapping[str, Any], width: int) -> str:
    """Sparsity asked and reached, bits, and bytes of each layer's weight.

    Args:
        report: A report with at least one weight.
        width: Pixels.
    """
    rows = shown_layers(report)
    narrow = width <= _NARROW
    height = 46 + 19 * len(rows)
    with page_style(f"layers{width}"):
        figure = blank(width, height)
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
        return svg(figure, "Sparsity, bits and bytes of each layer")


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
    with page_style(f"sizes{width}"):
        figure = blank(width, height)
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
        return svg(figure, "Bytes of the dense model and of each file")


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


def _phases(panels: Sequence[Axes], phases: Sequence[Mapping[str, Any]], last: int, narrow: bool) -> None:
    """Shade every second phase, and name the phases above the first panel."""
    for index, phase in enumerate(phases):
        share = (phase["end"] - phase["start"]) / last
        for axes in panels:
            if index % 2 == 0:
                axes.axvspan(phase["start"], phase["end"], color=WASH, linewidth=0, zorder=0)
        # About six pixels a letter: a name that does not fit is in the table of phases.
        if len(phase["name"]) * 6.2 < share * (300 if narrow else 760):
            panels[0].annotate(
                phase["name"], (phase["start"] + 0.006 * last, 1), (0, 4), xycoords=("data", "axes fraction"),
                textcoords="offset points", va="bottom", ha="left", color=QUIET, fontsize=11, annotation_clip=False,
            )  # fmt: skip


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


def _inner(axes: Axes) -> float:
    """Width of the axes in pixels."""
    return float(axes.get_window_extent().width)


def _shortened(name: str, length: int) -> str:
    if len(name) <= length:
        return name
    tail = (length - 1) * 2 // 3
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"
