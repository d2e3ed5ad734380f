"""What goes to loggers while a model trains, besides the series: plan, tables, histograms, pictures, alerts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn
from torch import Tensor

from lightning_compress.foundation.atomic_write import replacing
from lightning_compress.lightning_packages import is_instance
from lightning_compress.loggers.connection import kept_going
from lightning_compress.metrics.layer_table import LayerRow

LAYERS, HISTORY, SCHEDULE = "compress/layers", "compress/layers_over_time", "compress/schedule"
WEIGHTS = "compress/weights"
HISTORY_COLUMNS = ("step", "name", "sparsity_target", "sparsity", "weight_bits", "activation_bits")

_COLUMNS = (
    "name", "type", "shape", "numel", "sparsity_target", "sparsity", "weight_bits", "activation_bits",
    "macs", "pattern",
)  # fmt: skip
_BINS = 64


@rank_zero_only
def log_plan(loggers: Iterable[Logger], plan: Mapping[str, Any]) -> None:
    """Log what a run is going to do, resolved to optimizer steps.

    To W&B it is ``compress`` in the run's config; beside other local logs it is ``compress_plan.json``.

    Args:
        loggers: The Trainer's loggers.
        plan: JSON types, other values as text.
    """
    text = json.dumps(plan, indent=2, default=str)
    for logger in loggers:
        with kept_going(logger, "the plan"):
            if is_instance(logger, WandbLogger):
                logger.experiment.config.update({"compress": json.loads(text)}, allow_val_change=True)
            elif (folder := _folder(logger)) is not None:
                with replacing(folder / "compress_plan.json") as path:
                    path.write_text(text + "\n", encoding="utf-8")


@rank_zero_only
def log_layers(loggers: Iterable[Logger], rows: Sequence[LayerRow]) -> None:
    """Log one table with a row per layer: a ``wandb.Table`` to W&B, a CSV file beside other local logs.

    Args:
        loggers: The Trainer's loggers.
        rows: Every parameter of the model.
    """
    _log_table(loggers, LAYERS, _COLUMNS, [_cells(row) for row in rows], "the table of layers")


@rank_zero_only
def log_layer_history(loggers: Iterable[Logger], rows: Sequence[Sequence[Any]]) -> None:
    """Log one table of the layers over time, in the form of ``log_layers``.

    Args:
        loggers: The Trainer's loggers.
        rows: Values of ``HISTORY_COLUMNS``, whenever a layer's have changed.
    """
    _log_table(loggers, HISTORY, HISTORY_COLUMNS, rows, "the table of layers over time")


@rank_zero_only
def log_histograms(loggers: Iterable[Logger], weights: Mapping[str, Tensor], step: int) -> None:
    """Log how the entries of weights are spread, to W&B and TensorBoard.

    Args:
        loggers: The Trainer's loggers.
        weights: Layer → weight.
        step: Optimizer step.
    """
    import numpy as np

    for logger in loggers:
        with kept_going(logger, "the histograms"):
            for name, weight in weights.items():
                values = weight.detach().float().cpu().numpy().ravel()
                if is_instance(logger, WandbLogger):
                    import wandb

                    found = wandb.Histogram(np_histogram=np.histogram(values[np.isfinite(values)], bins=_BINS))
                    logger.log_metrics({f"{WEIGHTS}/{name}": found}, step)  # type: ignore[dict-item]
                elif is_instance(logger, TensorBoardLogger):
                    logger.experiment.add_histogram(f"{WEIGHTS}/{name}", values, step)


@rank_zero_only
def log_image(loggers: Iterable[Logger], key: str, png: bytes) -> None:
    """Log a picture: to W&B and TensorBoard as an image, beside other local logs as a file.

    Args:
        loggers: The Trainer's loggers.
        key: Its name, such as ``"compress/schedule"``.
        png: The picture.
    """
    import numpy as np
    from PIL import Image

    for logger in loggers:
        with kept_going(logger, f"the picture {key}"):
            if is_instance(logger, WandbLogger):
                logger.log_image(key, [Image.open(io.BytesIO(png))])
            elif is_instance(logger, TensorBoardLogger):
                pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
                logger.experiment.add_image(key, pixels, dataformats="HWC")
            elif (folder := _folder(logger)) is not None:
                with replacing(folder / f"{key.replace('/', '_')}.png") as path:
                    path.write_bytes(png)


@rank_zero_only
def alert(loggers: Iterable[Logger], title: str, text: str) -> None:
    """Tell the user of something that goes wrong: as a warning, and by W&B's alerts.

    Args:
        loggers: The Trainer's loggers.
        title: A few words.
        text: What was expected, what came, and where.
    """
    rank_zero_warn(f"{title}: {text}")
    for logger in loggers:
        if is_instance(logger, WandbLogger):
            with kept_going(logger, "an alert"):
                logger.experiment.alert(title=title, text=text, level="WARN")


def _log_table(
    loggers: Iterable[Logger], key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], what: str
) -> None:
    for logger in loggers:
        with kept_going(logger, what):
            if is_instance(logger, WandbLogger):
                logger.log_table(key, columns=list(columns), data=[list(row) for row in rows])
            elif (folder := _folder(logger)) is not None:
                with (
                    replacing(folder / f"{key.replace('/', '_')}.csv") as path,
                    path.open("w", newline="", encoding="utf-8") as file,
                ):
                    csv.writer(file).writerows([columns, *rows])


def _folder(logger: Logger) -> Path | None:
    """Where a local logger writes."""
    if not (is_instance(logger, CSVLogger) or is_instance(logger, TensorBoardLogger)):
        return None
    folder = Path(logger.log_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cells(row: LayerRow) -> list[Any]:
    shape = "×".join(map(str, row.shape))
    return [
        row.name, row.module_type, shape, row.numel, row.sparsity_target, row.sparsity, row.weight_bits,
        row.activation_bits, row.macs, row.pattern,
    ]  # fmt: skip
