"""A picture of each layer's sensitivity: one cell for each layer and setting, the chosen one marked."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lightning_compress.apps.advise.advise import Advice
from lightning_compress.apps.advise.sensitivity import Criterion
from lightning_compress.errors import CompressionError
from lightning_compress.foundation.atomic_write import replacing

_LEAST = 1e-4
_MOST = 10.0
_ROW, _CELL = 0.26, 0.2


def save(advice: Advice, criterion: Criterion, path: Path) -> None:
    """Draw the expected rise of the loss, by layer, sparsity and bits.

    Args:
        advice: What was found.
        criterion: Whose costs to draw.
        path: An ``.svg`` or ``.png`` file.

    Raises:
        CompressionError: The file's name has another ending.
    """
    if path.suffix not in (".svg", ".png"):
        raise CompressionError.field("--picture", expected="a name that ends in .svg or .png", got=str(path))
    import matplotlib
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    layers = advice.layers
    sparsities = sorted({option.sparsity for layer in layers for option in layer.options})
    widths = sorted({option.bits for layer in layers for option in layer.options}, key=lambda b: -(b or 32))
    place = {(s, b): len(widths) * i + j for i, s in enumerate(sparsities) for j, b in enumerate(widths)}
    cells = np.full((len(layers), len(place)), np.nan)
    for row, layer in enumerate(layers):
        for option, cost in zip(layer.options, layer.costs(criterion), strict=True):
            cells[row, place[option.sparsity, option.bits]] = min(max(cost, _LEAST), _MOST)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "advise", "font.size": 8, "text.parse_math": False})
        size = (2.4 + _CELL * len(place), 1.3 + _ROW * len(layers))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.set_facecolor("0.92")
        image = axes.imshow(cells, norm=LogNorm(_LEAST, _MOST), cmap="viridis_r", aspect="auto")
        for row, (_, option) in enumerate(advice.plan.layers if advice.plan is not None else ()):
            axes.plot(place[option.sparsity, option.bits], row, "o", color="red", markersize=5, markeredgecolor="white")
        axes.set_yticks(range(len(layers)), [layer.name.removesuffix(".weight") for layer in layers])
        middle = (len(widths) - 1) / 2
        axes.set_xticks([len(widths) * i + middle for i in range(len(sparsities))], [f"{s:.4g}" for s in sparsities])
        axes.tick_params(length=0)
        for i in range(1, len(sparsities)):
            axes.axvline(len(widths) * i - 0.5, color="white", linewidth=2)
        shown = ", ".join("float" if width is None else str(width) for width in widths)
        axes.set_xlabel(f"sparsity, and within each from left to right: {shown} bits")
        axes.set_title("Expected rise of the training loss; the plan in red", loc="left", fontweight="bold")
        figure.colorbar(image, ax=axes, pad=0.01)
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=144, metadata=_metadata(path))


def _metadata(path: Path) -> dict[str, None]:
    """Equal advice gives equal files: nothing of the date in them."""
    return {"Date": None} if path.suffix == ".svg" else {"Software": None}
