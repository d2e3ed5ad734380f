"""What goes to loggers when a run or a sweep is done: numbers to sort by, files with their lineage, the choice."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_compress.foundation.checksum import sha256
from lightning_compress.lightning_packages import is_instance
from lightning_compress.loggers.connection import PATIENCE_S, finish, kept_going
from lightning_compress.loggers.training import log_image

if TYPE_CHECKING:
    from wandb import Artifact, Run

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
    """Log a finished report: its numbers as summary values, its files as one artifact.

    To W&B the numbers of the three versions go as ``compress/<version>/<number>`` of the run's summary, and the files
    as one artifact of type ``model`` that has the numbers as metadata. The dense checkpoint is an input of the run, the
    compressed checkpoint and the model are outputs; both checkpoints are references to files that stay where they are.
    ``lineage`` in the model's metadata names both by name and digest, so that the chain also stands in offline files,
    in which W&B records no inputs. Other loggers get the numbers as metrics.

    Args:
        loggers: The Trainer's loggers.
        report: A report (``lightning_compress.report``).
        files: The exported files and the report's.
        dense: Weights of the dense model that compression began from or is compared with.
        checkpoint: Newest checkpoint of the compressed model.
    """
    numbers = summary(report)
    for logger in loggers:
        with kept_going(logger, "the report"):
            if is_instance(logger, WandbLogger):
                logger.experiment.summary.update(dict(numbers))
                _log_files(logger.experiment, report, files, dense, checkpoint)
            else:
                logger.log_metrics(numbers)
                logger.save()


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
    with kept_going(logger, "the comparison"):
        run = logger.experiment
        columns = ["name", "method", "value", "drop", "bytes", "latency_ms", "seconds", "keeps_limits", "on_front"]
        logger.log_table("compare/jobs", columns, [[job[key] for key in columns] for job in found["jobs"]])
        log_image([logger], "compare/pareto", png)
        run.config.update({key: found[key] for key in ("sweep_dir", "metric", "mode", "objective", "limits")})
        run.summary.update({"choice": found["choice"], "verdict": found["verdict"], **found["counts"]})
        if files:
            kept = {"job": found["choice"], "verdict": found["verdict"], "reasons": found["reasons"]}
            artifact = _artifact(name, "model", files, kept)
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
        numbers.update({f"compress/{version}/{k}": v for k, v in values.items() if v is not None})
    for artifact in report.get("artifacts", ()):
        numbers[f"compress/{artifact['format']}/bytes"] = artifact["bytes"]
    for key in ("agreement", "max_abs_difference", "integer_share"):
        if report.get(key) is not None:
            numbers[f"compress/{key}"] = report[key]
    return numbers


def _log_files(
    run: Run, report: Mapping[str, Any], files: Sequence[Path], dense: Path | None, checkpoint: Path | None
) -> None:
    name, lineage = str(report["name"]), {}
    # WandbLogger uploads checkpoints only, and refuses to do even that offline; the run itself takes any artifact.
    if dense is not None and dense.is_file():
        # Equal bytes under one name are one version: the jobs of a sweep that share a control have one input.
        artifact = _checkpoint(f"{name}-dense", dense)
        lineage["dense"] = _identity(artifact, dense)
        _log_artifact(run, artifact)
        if not run.offline:
            run.use_artifact(artifact)
    if checkpoint is not None and checkpoint.is_file():
        artifact = _checkpoint(f"{name}-{run.id}-checkpoint", checkpoint, {"lineage": dict(lineage)})
        lineage["checkpoint"] = _identity(artifact, checkpoint)
        _log_artifact(run, artifact)
    kept = ("name", "created", "seed", "plan", "results", "agreement", "max_abs_difference", "artifacts")
    metadata = {**{key: report[key] for key in kept if key in report}, "lineage": lineage}
    broken = ["breaks-limits"] if report.get("failures") else []
    _log_artifact(run, _artifact(f"{name}-{run.id}", "model", files, metadata), [*broken, "latest"])


def _log_artifact(run: Run, artifact: Artifact, aliases: Sequence[str] = ("latest",)) -> None:
    logged = run.log_artifact(artifact, aliases=list(aliases))
    if not run.offline:
        logged.wait(timeout=PATIENCE_S)


def _checkpoint(name: str, file: Path, metadata: Mapping[str, Any] | None = None) -> Artifact:
    """A checkpoint by reference: its digest is recorded, its gigabytes stay where they are."""
    artifact = _artifact(name, "checkpoint", [], metadata)
    artifact.add_reference(file.absolute().as_uri(), name=file.name)
    return artifact


def _artifact(name: str, type: str, files: Sequence[Path], metadata: Mapping[str, Any] | None = None) -> Artifact:
    import wandb

    plain = re.sub(r"[^\w.-]+", "-", name).strip("-") or "model"
    artifact = wandb.Artifact(plain, type=type, metadata=dict(metadata or {}))
    for file in files:
        artifact.add_file(str(file), name=file.name)
    return artifact


def _identity(artifact: Artifact, file: Path) -> dict[str, str]:
    return {"artifact": artifact.name.split(":")[0], "file": file.name, "sha256": sha256(file)}
