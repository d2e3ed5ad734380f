"""What is sent to loggers when a run or a sweep is done: numbers to sort by, files with their lineage, the choice."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_compress.loggers.base import Delivery
from lightning_compress.loggers.kinds import sink
from lightning_compress.loggers.training import log_image
from lightning_compress.loggers.weights_and_biases import WeightsAndBiases, artifact_of, finish
from lightning_compress.monitoring import names

VERSIONS = ("dense", "fake_quantized", "deployed")


@rank_zero_only
def log_report(
    loggers: Iterable[Logger],
    report: Mapping[str, Any],
    files: Sequence[Path],
    *,
    dense: Path | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Log a finished report: its numbers, and where a logger takes files, those of the export.

    Args:
        loggers: The Trainer's loggers.
        report: A report (``lightning_compress.report``).
        files: The exported files and the report's.
        dense: Weights of the dense model that compression began from or is compared with.
        checkpoint: Newest checkpoint of the compressed model.
    """
    found = Delivery(report, summary(report), files, dense, checkpoint)
    for logger in loggers:
        taker = sink(logger)
        with taker.kept_going("the report"):
            taker.delivery(found)


@rank_zero_only
def log_comparison(project: str, found: Mapping[str, Any], png: bytes, files: Sequence[Path], folder: Path) -> None:
    """Log the comparison of a sweep as a W&B run of its own, and the chosen files under the alias ``chosen``.

    Offline, unless ``WANDB_MODE`` says otherwise.

    Args:
        project: W&B's project.
        found: A comparison (``choice.listing.as_dict``).
        png: The picture of the Pareto front.
        files: Files of the chosen job; empty where none was chosen.
        folder: Where W&B keeps the run's files.
    """
    name, mode = Path(found["sweep_dir"]).resolve().name, os.environ.get("WANDB_MODE", "offline")
    logger = WandbLogger(project=project, save_dir=folder.resolve(), job_type="compare", name=name, mode=mode)
    with WeightsAndBiases(logger).kept_going("the comparison"):
        run = logger.experiment
        columns = ["name", "method", "value", "drop", "bytes", "latency_ms", "seconds", "keeps_limits", "on_front"]
        logger.log_table("compare/jobs", columns, [[job[key] for key in columns] for job in found["jobs"]])
        log_image([logger], "compare/pareto", png)
        run.config.update({key: found[key] for key in ("sweep_dir", "metric", "mode", "objective", "limits")})
        run.summary.update({"choice": found["choice"], "verdict": found["verdict"], **found["counts"]})
        if files:
            kept = {"job": found["choice"], "verdict": found["verdict"], "reasons": found["reasons"]}
            artifact = artifact_of(name, "model", files, kept)
            run.log_artifact(artifact, aliases=["chosen", "latest"])
    finish()


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
        numbers.update({names.of_report(version, k): v for k, v in values.items() if v is not None})
    for artifact in report.get("artifacts", ()):
        numbers[names.of_report(artifact["format"], "bytes")] = artifact["bytes"]
    for key in ("agreement", "max_abs_difference", "integer_share"):
        if report.get(key) is not None:
            numbers[names.of_report(key)] = report[key]
    return numbers
