"""What is sent to loggers during training, besides the series: plan, tables, histograms, pictures, alerts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn
from torch import Tensor

from lightning_compress.loggers.kinds import sink
from lightning_compress.metrics.layer_table import LayerRow
from lightning_compress.monitoring import names

LAYERS, HISTORY, SCHEDULE = names.LAYERS, names.LAYERS_OVER_TIME, names.SCHEDULE
HISTORY_COLUMNS = ("step", "name", "sparsity_target", "sparsity", "weight_bits", "activation_bits")

_COLUMNS = (
    "name", "type", "shape", "numel", "sparsity_target", "sparsity", "weight_bits", "activation_bits",
    "macs", "pattern",
)  # fmt: skip


@rank_zero_only
def log_plan(loggers: Iterable[Logger], plan: Mapping[str, Any]) -> None:
    """Log what a run is going to do, resolved to optimizer steps.

    Args:
        loggers: The Trainer's loggers.
        plan: JSON types, other values as text.
    """
    known = json.loads(json.dumps(plan, default=str))
    for taker in map(sink, loggers):
        with taker.kept_going("the plan"):
            taker.plan(known)


@rank_zero_only
def log_layers(loggers: Iterable[Logger], rows: Sequence[LayerRow]) -> None:
    """Log one table with a row per layer.

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
    """Log how the entries of weights are spread.

    Args:
        loggers: The Trainer's loggers.
        weights: Layer → weight.
        step: Optimizer step.
    """
    for taker in map(sink, loggers):
        with taker.kept_going("the histograms"):
            for name, weight in weights.items():
                taker.histogram(f"{names.WEIGHTS}/{name}", weight.detach().float().cpu().numpy().ravel(), step)


@rank_zero_only
def log_image(loggers: Iterable[Logger], key: str, png: bytes) -> None:
    """Log a picture.

    Args:
        loggers: The Trainer's loggers.
        key: Its name, such as ``"compress/schedule"``.
        png: The picture.
    """
    for taker in map(sink, loggers):
        with taker.kept_going(f"the picture {key}"):
            taker.image(key, png)


@rank_zero_only
def alert(loggers: Iterable[Logger], title: str, text: str) -> None:
    """Tell the user of something that goes wrong: as a warning, and by the alerts of loggers that have them.

    Args:
        loggers: The Trainer's loggers.
        title: A few words.
        text: What was expected, what was found, and where.
    """
    rank_zero_warn(f"{title}: {text}")
    for taker in map(sink, loggers):
        with taker.kept_going("an alert"):
            taker.alert(title, text)


def _log_table(
    loggers: Iterable[Logger], key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], what: str
) -> None:
    for taker in map(sink, loggers):
        with taker.kept_going(what):
            taker.table(key, columns, rows)


def _cells(row: LayerRow) -> list[Any]:
    shape = "×".join(map(str, row.shape))
    return [
        row.name, row.module_type, shape, row.numel, row.sparsity_target, row.sparsity, row.weight_bits,
        row.activation_bits, row.macs, row.pattern,
    ]  # fmt: skip
