"""What goes to experiment loggers besides the series: the table of layers, the report, the files.

The only module that knows W&B. A logger that fails never stops a run: its error becomes a warning.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only, rank_zero_warn

from lightning_compress.export.atomic import replacing
from lightning_compress.metrics.layers import LayerRow

LAYERS = "compress/layers"
LAYERS_FILE = "compress_layers.csv"
VERSIONS = ("dense", "fake_quantized", "deployed")

_COLUMNS = (
    "name", "type", "shape", "numel", "sparsity_target", "sparsity", "weight_bits", "activation_bits",
    "macs", "pattern",
)  # fmt: skip


@rank_zero_only
def log_layers(loggers: Iterable[Logger], rows: Sequence[LayerRow]) -> None:
    """Log one table with a row per layer: a ``wandb.Table`` to W&B, a CSV file beside other local logs.

    Args:
        loggers: The Trainer's loggers.
        rows: Every parameter of the model.
    """
    data = [_cells(row) for row in rows]
    for logger in loggers:
        with _kept_going(logger, "the table of layers"):
            if isinstance(logger, WandbLogger):
                logger.log_table(LAYERS, columns=list(_COLUMNS), data=data)
            elif isinstance(logger, CSVLogger | TensorBoardLogger):
                with (
                    replacing(Path(logger.log_dir) / LAYERS_FILE) as path,
                    path.open("w", newline="", encoding="utf-8") as file,
                ):
                    csv.writer(file).writerows([_COLUMNS, *data])


@rank_zero_only
def log_report(loggers: Iterable[Logger], report: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Log a finished report: its numbers as summary values, its files as one artifact.

    To W&B the numbers of the three versions go as ``compress/<version>/<number>`` of the run's summary, and the files
    as one artifact of type ``model`` that has the numbers as metadata. Other loggers get the numbers as metrics.

    Args:
        loggers: The Trainer's loggers.
        report: A report (``lightning_compress.report``).
        files: The exported files and the report's.
    """
    numbers = summary(report)
    for logger in loggers:
        with _kept_going(logger, "the report"):
            if isinstance(logger, WandbLogger):
                _log_to_wandb(logger, report, numbers, files)
            else:
                logger.log_metrics(numbers)
                logger.save()


def summary(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a report by which runs are compared and sorted.

    Example:
        >>> result = {"metrics": {"test/acc": 0.97}, "bytes": 9500, "compression_ratio": None, "latency_ms": None}
        >>> summary({"results": {"dense": None, "fake_quantized": None, "deployed": result}})
        {'compress/deployed/test/acc': 0.97, 'compress/deployed/bytes': 9500}
    """
    numbers: dict[str, float] = {}
    for version in VERSIONS:
        result = report["results"][version]
        if result is None:
            continue
        values = {**result["metrics"], "bytes": result["bytes"], "compression_ratio": result["compression_ratio"]}
        if result["latency_ms"] is not None:
            values["latency_ms"] = result["latency_ms"]["median"]
        numbers.update({f"compress/{version}/{k}": v for k, v in values.items() if v is not None})
    for key in ("agreement", "max_abs_difference"):
        if report.get(key) is not None:
            numbers[f"compress/{key}"] = report[key]
    return numbers


def finish() -> None:
    """End the W&B run of this process, if there is one.

    ``WandbLogger`` leaves its run open for the next Trainer; in a sweep every job would write into the first one's.
    """
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()


def _log_to_wandb(
    logger: WandbLogger, report: Mapping[str, Any], numbers: Mapping[str, float], files: Sequence[Path]
) -> None:
    import wandb

    run = logger.experiment
    run.summary.update(dict(numbers))
    name = re.sub(r"[^\w.-]+", "-", str(report["name"])).strip("-") or "model"
    artifact = wandb.Artifact(f"{name}-{run.id}", type="model", metadata=_metadata(report))
    for file in files:
        artifact.add_file(str(file), name=Path(file).name)
    # WandbLogger uploads checkpoints only, and refuses to do even that offline; the run itself takes any artifact.
    run.log_artifact(artifact)


def _metadata(report: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("name", "created", "seed", "plan", "results", "agreement", "max_abs_difference", "artifacts")
    return {key: report[key] for key in kept if key in report}


def _cells(row: LayerRow) -> list[Any]:
    shape = "×".join(map(str, row.shape))
    return [
        row.name, row.module_type, shape, row.numel, row.sparsity_target, row.sparsity, row.weight_bits,
        row.activation_bits, row.macs, row.pattern,
    ]  # fmt: skip


@contextmanager
def _kept_going(logger: Logger, what: str) -> Iterator[None]:
    """Turn what a logger's server or disk does wrong into a warning."""
    failures: tuple[type[Exception], ...] = (OSError, TimeoutError)
    if isinstance(logger, WandbLogger):
        import wandb

        failures += (wandb.Error,)
    try:
        yield
    except failures as error:
        rank_zero_warn(f"{type(logger).__name__} did not take {what}: {error}. The run goes on.")
