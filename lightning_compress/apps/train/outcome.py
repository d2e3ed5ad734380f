"""The outcome of the main job: rows to compare, one table, one file, one objective."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_compress.errors import CompressionError, closest
from lightning_compress.monitoring.names import PREFIX

if TYPE_CHECKING:
    from rich.table import Table

RESULT_FILE = "result.json"

Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The result of one run.

    Attributes:
        name: The run's name.
        output_dir: Where everything lies.
        rows: ``"dense"``, ``"trained"`` or ``"fake_quantized"``, ``"deployed"``, as in the report: a label,
            ``metrics``, and where known ``bytes``, ``compression_ratio``, ``latency_ms``.
        values: Every number of the run under a flat name, such as ``val/acc`` or ``deployed/bytes``.
        checkpoint: Newest checkpoint of the compressed model.
        dense_checkpoint: Checkpoint of the dense control.
        report: Path of the report.
        seconds: Wall time of the parts.
        failures: What was asked for and does not hold.
        objective: For a sweeper.
    """

    name: str
    output_dir: str
    rows: dict[str, Row]
    values: dict[str, float]
    checkpoint: str | None
    dense_checkpoint: str | None
    report: str | None
    seconds: dict[str, float]
    failures: tuple[str, ...] = ()
    objective: float | tuple[float, ...] | None = None

    @classmethod
    def gather(
        cls,
        *,
        name: str,
        output_dir: Path,
        metrics: Mapping[str, float],
        dense: Mapping[str, float],
        report: Report | None,
        checkpoint: Path | None,
        dense_checkpoint: Path | None,
        seconds: Mapping[str, float],
        failures: Sequence[str] = (),
    ) -> Outcome:
        """Put the numbers of the trainers beside those of the report, where one was written.

        Args:
            name: The run's name.
            output_dir: Where everything lies.
            metrics: Of the compressed model as it was trained.
            dense: Of the dense control; empty without one.
            report: What the export wrote.
            checkpoint: Newest checkpoint of the compressed model.
            dense_checkpoint: Checkpoint of the dense control.
            seconds: Wall time of the parts.
            failures: What was asked for and does not hold.
        """
        # A version that was not measured is null in a report.
        results = report.content["results"] if report else {}
        written: dict[str, Row] = {key: dict(row) for key, row in results.items() if row}
        trained = "fake_quantized" if "fake_quantized" in written else "trained"
        rows: dict[str, Row] = {}
        for key, label, own in (("dense", "dense", dense), (trained, "trained", metrics)):
            if own or key in written:
                row = written.pop(key, {"label": label, "metrics": {}})
                rows[key] = {**row, "metrics": {**_evaluations(own), **row["metrics"]}}
        rows |= written
        values = {**metrics, **{f"{key}/{name}": value for key, row in rows.items() for name, value in _flat(row)}}
        return cls(
            name=name,
            output_dir=str(output_dir),
            rows=rows,
            values=values,
            checkpoint=str(checkpoint) if checkpoint else None,
            dense_checkpoint=str(dense_checkpoint) if dense_checkpoint else None,
            report=str(report.path) if report else None,
            seconds={part: round(value, 3) for part, value in seconds.items()},
            failures=tuple(failures),
        )

    def with_objective(self, wanted: str | list[str] | None) -> Outcome:
        """Look up what a sweeper asked for.

        Raises:
            CompressionError: The run has no number of that name.
        """
        if wanted is None:
            return self
        names = [wanted] if isinstance(wanted, str) else wanted
        for name in names:
            if name not in self.values:
                raise CompressionError.field(
                    "optimized_metric", expected="a number of this run", got=name, fix=closest(name, self.values)
                )
        found = tuple(self.values[name] for name in names)
        return replace(self, objective=found[0] if isinstance(wanted, str) else found)

    def write(self) -> None:
        """Write ``result.json`` into the output directory."""
        from lightning_compress.foundation.atomic_write import replacing

        with replacing(Path(self.output_dir) / RESULT_FILE) as path:
            Path(path).write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")

    def as_dict(self) -> dict[str, Any]:
        """The outcome as JSON types."""
        plain = asdict(self)
        return {**plain, "failures": list(self.failures)}

    def show(self) -> None:
        """Print the report's comparison, or without a report each model's metrics, and what failed."""
        from rich.console import Console

        console, told = Console(), []
        if self.report is None:
            console.print(self._metrics())
        else:
            from lightning_compress.report import show

            report = json.loads(Path(self.report).read_text(encoding="utf-8"))
            show(report, Path(self.report).parent)
            told = report["failures"]
        for failure in self.failures:
            if failure not in told:
                console.print(failure, style="bold red", markup=False)
        console.print(f"Written to {self.output_dir}", markup=False, soft_wrap=True)

    def _metrics(self) -> Table:
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=escape(self.name))
        metrics = list(dict.fromkeys(name for row in self.rows.values() for name in row["metrics"]))
        table.add_column("model")
        for name in metrics:
            table.add_column(escape(name), justify="right")
        for row in self.rows.values():
            table.add_row(escape(row["label"]), *(_number(row["metrics"].get(name), name) for name in metrics))
        return table


@dataclass(frozen=True)
class Report:
    """A report as an export wrote it."""

    path: Path
    content: dict[str, Any]


def read_report(folder: str | Path) -> Report | None:
    """Read ``report.json`` from an export's directory; ``None`` if there is none."""
    path = Path(folder) / "report.json"
    return Report(path, json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def _evaluations(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of validation and test passes, without those of training steps and of the compression itself."""
    return {name: value for name, value in metrics.items() if not name.startswith(("train/", PREFIX))}


def _flat(row: Row) -> Iterator[tuple[str, float]]:
    yield from row["metrics"].items()
    for name in ("bytes", "compression_ratio"):
        if row.get(name) is not None:
            yield name, row[name]
    for name, value in (row.get("latency_ms") or {}).items():
        yield f"latency_ms/{name}", value


def _number(value: float | None, name: str) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.2f} %" if "acc" in name else f"{value:.4f}"
