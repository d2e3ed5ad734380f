"""Verifying a written file: run it on the data of its run, and compare it with the dense and the trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
from torch import nn

from lightning_compress.apps.configuration.saved_config import run_config
from lightning_compress.apps.train.outcome import read_report
from lightning_compress.apps.trained_run import Split, TrainedRun, find_run, read_run
from lightning_compress.delivery.dense_baseline import as_dense
from lightning_compress.delivery.evaluation import duplicate, evaluate
from lightning_compress.delivery.output_cache import Remembered
from lightning_compress.delivery.side_by_side import evaluate_as_trained, evaluate_beside
from lightning_compress.errors import CompressionError, closest
from lightning_compress.export.divergence import SiteError, can_trace, first_divergence, site_errors
from lightning_compress.export.formats import DENSE_ONNX, FORMATS
from lightning_compress.export.signatures import called_through
from lightning_compress.export.verification import deployed_form
from lightning_compress.foundation.checksum import sha256
from lightning_compress.report import number_text as text

__all__ = ["Demands", "FileVerdict", "Split", "verify_run"]

# Metrics are computed in float32: two of them may each be half a unit in the last place off.
_ROUNDING = 2.0**-23


@dataclass(frozen=True)
class Demands:
    """What a file must keep; ``None`` where the run's own config decides.

    Attributes:
        max_drop: Largest loss of the metric from dense to deployed, and whether it is a percentage.
        min_agreement: Smallest share of predictions with the same top class as the trained model's.
        metric: Which metric; by default the export's ``monitor``, or else the first accuracy.
        mode: Whether more of it is better (``"max"``) or less.
    """

    max_drop: tuple[float, bool] | None = None
    min_agreement: float | None = None
    metric: str | None = None
    mode: Literal["max", "min"] | None = None

    def __post_init__(self) -> None:
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise CompressionError.field(
                "verify --min-agreement", expected="a share from 0 to 1", got=self.min_agreement
            )


@dataclass
class FileVerdict:
    """What running one file showed.

    Attributes:
        path: The file.
        runtime: What ran it.
        samples: Samples that it was run on.
        agreement: Share of predictions with the trained model's top class; ``None`` where outputs are no scores.
        max_abs_difference: Largest absolute difference from the trained model's outputs.
        mean_abs_difference: Mean absolute difference.
        metrics: ``"dense"`` (if there is one), ``"fake_quantized"``, ``"deployed"``: what the steps log.
        divergence: Where the file begins to differ by more than rounding, if it does.
        traced: Whether its activations could be looked at.
        failures: What does not hold.
        notes: What a reader should know.
    """

    path: Path
    runtime: str
    samples: int = 0
    agreement: float | None = None
    max_abs_difference: float = 0.0
    mean_abs_difference: float = 0.0
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    divergence: SiteError | None = None
    traced: bool = False
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            **vars(self),
            "path": str(self.path),
            "divergence": None if self.divergence is None else self.divergence.as_dict(),
        }


def verify_run(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    demands: Demands | None = None,
    split: Split | None = None,
    threads: int = 1,
    run_dir: Path | None = None,
    trust: bool = False,
) -> list[FileVerdict]:
    """Run a written file on the data of its run. Nothing is changed or deleted.

    Args:
        path: A file that an export wrote, or its directory, for all of them.
        overrides: Changes of the run's config, as Hydra takes them (``data.root=...``).
        demands: What must hold.
        split: ``"val"`` or ``"test"``; by default what the export was verified on.
        threads: Threads of the runtimes.
        run_dir: Directory of the run; by default the file's own directory or the one above.
        trust: Whether the run's config may name any class and its checkpoint may hold any object: both run code.
            Otherwise models and data are of this package, of PyTorch, or imported already.

    Returns:
        A verdict for each file.

    Raises:
        CompressionError: There is no such file, or the run that it is from cannot be read.
    """
    files = _files(path)
    if threads < 1:
        raise CompressionError.field("verify --threads", expected="at least 1", got=threads)
    folder = find_run(files[0]) if run_dir is None else find_run(run_dir / "run")
    with run_config(folder, overrides, trust=trust) as cfg:
        export = cfg.get("export") or {}
        split = split or export.get("split") or "val"
        run = read_run(folder, files[0], cfg, split, trust=trust)
        model = called_through(duplicate(run.module), run.entry.name)
        reference = Remembered(model)
        shared = {"fake_quantized": evaluate_as_trained(run.module, run.data).metrics}
        if run.dense is not None:
            dense = cast(L.LightningModule, as_dense(duplicate(run.module), run.dense))
            shared = {"dense": evaluate(dense, run.data), **shared}
        trained = _Trained(run, model, reference, shared)
        asked = _with_defaults(demands or Demands(), export)
        return [_verdict(file, trained, asked, threads) for file in files]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    folder = path / "compressed" if (path / "compressed").is_dir() else path
    files = [folder / kind.file for kind in FORMATS.values() if (folder / kind.file).is_file()]
    if not files:
        raise CompressionError.field(
            "verify PATH", expected="a file that an export wrote, or a directory with such", got=str(path)
        )
    return files


def _with_defaults(given: Demands, export: Any) -> Demands:
    drop = export.get("max_drop")
    agreement = export.get("min_agreement")
    return Demands(
        max_drop=given.max_drop if given.max_drop is not None or drop is None else (float(drop), False),
        min_agreement=agreement if given.min_agreement is None else given.min_agreement,
        metric=given.metric or export.get("monitor"),
        mode=given.mode or (export.get("mode") if export.get("monitor") else None),
    )


@dataclass(frozen=True)
class _Trained:
    """What all files of a run are compared with."""

    run: TrainedRun
    model: nn.Module
    reference: Remembered
    metrics: dict[str, dict[str, float]]


def _verdict(path: Path, trained: _Trained, demands: Demands, threads: int) -> FileVerdict:
    run, model, entry = trained.run, trained.model, trained.run.entry
    found = FileVerdict(path, "none", metrics=dict(trained.metrics), notes=[*run.notes, *_other_file(path)])
    try:
        form, found.runtime = deployed_form(path, model, threads=threads)
        found.metrics["deployed"], compared = evaluate_beside(
            form, trained.reference, run.module, run.data, entry=entry.name, passed=entry.takes(model)
        )
        found.samples, found.agreement = compared.samples, compared.agreement
        found.max_abs_difference, found.mean_abs_difference = compared.max_abs, compared.mean_abs
        found.traced = can_trace(path)
        if found.traced and compared.max_abs:
            found.divergence = first_divergence(site_errors(path, model, entry.args, entry.kwargs, threads=threads))
    except CompressionError as error:
        found.failures.append(str(error))
        return found
    found.failures += _failures(found, demands)
    return found


def _other_file(path: Path) -> list[str]:
    report = read_report(path.parent)
    if report is None or path.name == DENSE_ONNX:
        return []
    known = {item["file"]: item["sha256"] for item in report.content.get("artifacts", [])}
    if path.name in known and sha256(path) != known[path.name]:
        return [f"{path.name} is not the file that {report.path.name} speaks of: its checksum differs."]
    return []


def _failures(found: FileVerdict, demands: Demands) -> list[str]:
    failed = []
    if demands.max_drop is not None:
        failed += _drop(found, demands, *demands.max_drop)
    if demands.min_agreement is not None:
        if found.agreement is None:
            failed.append("--min-agreement cannot be judged: the outputs were not recognized as class scores.")
        elif found.agreement < demands.min_agreement:
            failed.append(
                f"It agrees with the trained model on {found.agreement:.2%} of the predictions, at least "
                f"{demands.min_agreement:.2%} is asked for."
            )
    if found.divergence is not None:
        failed.append(f"It differs from the trained model by more than rounding, first in {found.divergence}.")
    return failed


def _drop(found: FileVerdict, demands: Demands, most: float, percentage: bool) -> list[str]:
    names = list(found.metrics["deployed"])
    name = demands.metric or next((n for n in names if text.is_share(n)), names[0] if names else None)
    if name is None or name not in names:
        raise CompressionError.field(
            "verify --metric", expected="a metric that the evaluation logs", got=name, fix=closest(str(name), names)
        )
    if name not in found.metrics.get("dense", {}):
        return [f"--max-drop cannot be judged: there is no dense control with {name} in the run's directory."]
    share = text.is_share(name)
    mode = demands.mode or ("max" if share else "min")
    dense, deployed = found.metrics["dense"][name], found.metrics["deployed"][name]
    drop = (dense - deployed) * (1 if mode == "max" else -1)
    allowed = most * abs(dense) if percentage and not share else most
    if drop <= allowed + _ROUNDING * abs(dense):
        return []
    return [f"{name} drops by {drop:.4g} from dense to deployed, at most {allowed:.4g} is asked for."]
