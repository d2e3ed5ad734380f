"""Weights & Biases: what a run, its tables and its artifacts take."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.loggers import WandbLogger
from numpy.typing import NDArray

from lightning_compress.foundation.checksum import sha256
from lightning_compress.loggers.base import Delivery, Sink

if TYPE_CHECKING:
    from wandb import Artifact, Run

PATIENCE_S = 120
"""How long an artifact or the end of a run may wait for a server before the run goes on without it."""
_BINS = 64


class WeightsAndBiases(Sink):
    """Everything: the plan in the run's config, tables, histograms, pictures, alerts, and artifacts.

    The numbers of the report's three versions go as ``compress/<version>/<number>`` to the run's summary, and the files
    as one artifact of type ``model`` that has the numbers as metadata. The dense checkpoint is an input of the run, the
    compressed checkpoint and the model are outputs; both checkpoints are references to files that stay where they are.
    ``lineage`` in the model's metadata names both by name and digest, so that the chain also stands in offline files,
    in which W&B records no inputs.
    """

    serves = WandbLogger

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """W&B's own errors, too."""
        import wandb

        return *super().failures, wandb.Error

    def connect(self, *, silent: bool = False) -> str | None:
        """Begin the run; ``silent`` keeps the lines off the screen that W&B prints before it reads a run's settings."""
        import wandb

        # A run whose server has gone since must end all the same.
        os.environ.setdefault("WANDB_FINISH_TIMEOUT", str(PATIENCE_S))
        try:
            with redirect_stderr(io.StringIO()) if silent else nullcontext():
                _ = self.logger.experiment
        except (wandb.Error, OSError) as error:
            return " ".join(str(error).split())
        return None

    @property
    def place(self) -> str | None:
        """The run's page, or offline the folder that ``wandb sync`` takes."""
        run = self.logger.experiment
        return os.path.dirname(run.dir) if run.offline else run.url

    def plan(self, plan: Mapping[str, Any]) -> None:
        """``compress`` in the run's config."""
        self.logger.experiment.config.update({"compress": plan}, allow_val_change=True)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A ``wandb.Table``."""
        self.logger.log_table(key, columns=list(columns), data=[list(row) for row in rows])

    def histogram(self, key: str, values: NDArray[np.float32], step: int) -> None:
        """A ``wandb.Histogram`` of the finite numbers."""
        import wandb

        found = wandb.Histogram(np_histogram=np.histogram(values[np.isfinite(values)], bins=_BINS))
        self.logger.log_metrics({key: found}, step)

    def image(self, key: str, png: bytes) -> None:
        """A ``wandb.Image``."""
        from PIL import Image

        self.logger.log_image(key, [Image.open(io.BytesIO(png))])

    def alert(self, title: str, text: str) -> None:
        """An alert, which W&B sends on."""
        self.logger.experiment.alert(title=title, text=text, level="WARN")

    def delivery(self, found: Delivery) -> None:
        """Summary and artifacts."""
        run = self.logger.experiment
        run.summary.update(dict(found.numbers))
        _log_files(run, found.report, found.files, found.dense, found.checkpoint)


def finish() -> None:
    """End the W&B run of this process, if there is one.

    ``WandbLogger`` leaves its run open for the next Trainer; in a sweep every job would write into the first one's.
    """
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()


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
    _log_artifact(run, artifact_of(f"{name}-{run.id}", "model", files, metadata), [*broken, "latest"])


def _log_artifact(run: Run, artifact: Artifact, aliases: Sequence[str] = ("latest",)) -> None:
    logged = run.log_artifact(artifact, aliases=list(aliases))
    if not run.offline:
        logged.wait(timeout=PATIENCE_S)


def _checkpoint(name: str, file: Path, metadata: Mapping[str, Any] | None = None) -> Artifact:
    """A checkpoint by reference: its digest is recorded, its gigabytes stay where they are."""
    artifact = artifact_of(name, "checkpoint", [], metadata)
    artifact.add_reference(file.absolute().as_uri(), name=file.name)
    return artifact


def artifact_of(name: str, type: str, files: Sequence[Path], metadata: Mapping[str, Any] | None = None) -> Artifact:
    """An artifact of files, under a name that W&B allows."""
    import wandb

    plain = re.sub(r"[^\w.-]+", "-", name).strip("-") or "model"
    artifact = wandb.Artifact(plain, type=type, metadata=dict(metadata or {}))
    for file in files:
        artifact.add_file(str(file), name=file.name)
    return artifact


def _identity(artifact: Artifact, file: Path) -> dict[str, str]:
    return {"artifact": artifact.name.split(":")[0], "file": file.name, "sha256": sha256(file)}
