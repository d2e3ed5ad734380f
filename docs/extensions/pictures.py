"""The documentation's pictures, drawn by the program's own functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt

from lightning_compress.apps.compare.pareto import front
from lightning_compress.models import ResNet
from lightning_compress.pruning.distributions import layer_sparsity
from lightning_compress.pruning.schedule import CURVES, SparsitySchedule
from lightning_compress.quantization.fake_quantize.reference import quantize
from lightning_compress.quantization.ranges.qparams import affine_qparams

ROOT = Path(__file__).parents[2]
BLUE, ORANGE, GREY = "#2563eb", "#d97706", "#9ca3af"


def draw(folder: Path) -> None:
    """Draw all pictures.

    Args:
        folder: Where they go, as SVG.
    """
    mpl.use("Agg")
    # The same bytes from the same numbers, and text that the page can search.
    style = {
        "svg.hashsalt": "docs", "svg.fonttype": "none", "font.size": 10, "axes.spines.top": False,
        "axes.spines.right": False, "figure.figsize": (6.4, 3.2), "figure.constrained_layout.use": True,
    }  # fmt: skip
    with mpl.rc_context(style):
        drawn = {picture.__name__: picture() for picture in (schedules, distributions, staircase, pareto)}
        for path in sorted((ROOT / "benchmarks" / "results").glob("accuracy_*.json")):
            drawn[path.stem] = compressions(json.loads(path.read_text(encoding="utf-8"))["rows"])
        for name, figure in drawn.items():
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)


def schedules() -> Any:
    """Sparsity asked for over a run of 1,000 steps, of every schedule."""
    figure, axes = plt.subplots()
    steps = range(1001)
    for name, curve in CURVES.items():
        schedule = SparsitySchedule(0.0, 0.8, start=100, end=600, every=25, curve=curve)
        axes.plot(steps, [schedule.at(step) for step in steps], label=name, drawstyle="steps-post")
    axes.set(xlabel="optimizer step", ylabel="sparsity", ylim=(0, 1))
    axes.legend(frameon=False)
    return figure


def distributions() -> Any:
    """Sparsity of ResNet-20's layers at 90 %, uniform and by ERK."""
    shapes = {n: tuple(p.shape) for n, p in ResNet(3, 10, depth=20).named_parameters() if p.ndim > 1}
    figure, axes = plt.subplots()
    for name, colour in (("uniform", GREY), ("erk", BLUE)):
        values = list(layer_sparsity(name, shapes, 0.9).values())  # type: ignore[arg-type]
        axes.plot(range(len(values)), values, marker="o", markersize=4, color=colour, label=name)
    axes.set(xlabel="layer of ResNet-20, from input to output", ylabel="sparsity", ylim=(0, 1.02))
    axes.legend(frameon=False)
    return figure


def staircase() -> Any:
    """What a 3-bit affine quantizer does to the values of its range and beyond."""
    x = torch.linspace(-2, 4, 1201)
    scale, zero_point = affine_qparams(torch.tensor(-1.0), torch.tensor(3.0), 3)
    y, _ = quantize(x, scale, zero_point, 0, 7)
    figure, axes = plt.subplots()
    axes.plot(x, x, color=GREY, linewidth=1, label="x")
    axes.plot(x, y, color=BLUE, label="3 bits, range −1 to 3")
    axes.axhline(0, color=GREY, linewidth=0.5)
    axes.set(xlabel="x", ylabel="fake-quantized x")
    axes.legend(frameon=False)
    return figure


def pareto() -> Any:
    """Accuracy over packed size of every measured recipe and its dense control."""
    figure, axes = plt.subplots()
    points = []
    for path in sorted(ROOT.glob("recipes/*/expected.json")):
        seeds = json.loads(path.read_text(encoding="utf-8"))["seeds"]
        if "packed" in seeds[0]["bytes"]:
            ratio = np.mean([seed["bytes"]["dense"] / seed["bytes"]["packed"] for seed in seeds])
            drop = np.mean([seed["accuracy"]["dense"] - seed["accuracy"]["deployed"] for seed in seeds])
            points.append((path.parent.name, float(ratio), float(drop)))
    best = set(front([(ratio, drop) for _, ratio, drop in points], [True, False]))
    for index, (name, ratio, drop) in enumerate(points):
        axes.plot(ratio, drop, "o", color=BLUE if index in best else GREY)
        axes.annotate(name.replace("_", " "), (ratio, drop), xytext=(5, 3), textcoords="offset points", fontsize=7)
    axes.axhline(0, color=GREY, linewidth=0.5)
    axes.set(xlabel="times smaller, packed file", ylabel="points lost", xscale="log")
    axes.margins(0.25)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -0.25), max(high, 0.5))
    return figure


def compressions(rows: list[dict[str, Any]]) -> Any:
    """Points lost over packed size of every row of an accuracy benchmark, with the deviation over the seeds.

    Args:
        rows: Those of a file of ``benchmarks/results`` that ``accuracy.py`` writes.
    """
    rows = [row for row in rows if row["compression"] not in ("control", "dense")]
    best = set(front([(row["times_smaller"], row["drop"]) for row in rows], [True, False]))
    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    axes.axhline(0, color=GREY, linewidth=0.5)
    for index, row in enumerate(rows):
        colour, size, lost = BLUE if index in best else GREY, row["times_smaller"], row["drop"]
        axes.errorbar(size, lost, yerr=row.get("drop_std"), fmt="o", color=colour, markersize=4, elinewidth=0.8)
        axes.annotate(row["compression"], (size, lost), xytext=(5, 3), textcoords="offset points", fontsize=7)
    counts = {row["seeds"] for row in rows if "seeds" in row}
    seeds = f" ({'–'.join(map(str, sorted({min(counts), max(counts)})))} seeds)" if counts else ""
    axes.set(xlabel="times smaller, packed file", ylabel=f"points lost{seeds}", xscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.margins(0.25, 0.1)
    return figure
