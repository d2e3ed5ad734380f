"""Results of an export: files, metrics, timings, notes and failures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from lightning_compress.delivery.dense_baseline import untrained_start
from lightning_compress.errors import reason
from lightning_compress.export.divergence import SiteError
from lightning_compress.export.formats import deployed_of
from lightning_compress.export.integer_share import IntegerShare
from lightning_compress.export.latency import Ratio, Timing
from lightning_compress.export.litert.micro import MicroMemory
from lightning_compress.export.packed.save_load import PackedFile
from lightning_compress.export.verification import Comparison
from lightning_compress.report.number_text import percent, size


@dataclass
class Result:
    """One form of the model: where it ran and what it gave."""

    label: str
    runtime: str | None
    source: str
    bytes: int
    metrics: dict[str, float] = field(default_factory=dict)
    timing: Timing | None = None


@dataclass(frozen=True)
class Microcontroller:
    """What the interpreter for microcontrollers said.

    Attributes:
        runtime: Its name and release.
        flash_bytes: Bytes of the file.
        arena_bytes: Bytes of RAM; ``None`` where it does not run.
        unsupported: Operators without a kernel there.
        error: Why it does not run.
        samples: On how many samples it was compared with the trained model.
        agreement: Share of them with the same top class; ``None`` where outputs are not class scores.
        max_abs_difference: Largest difference of outputs.
    """

    runtime: str
    flash_bytes: int
    arena_bytes: int | None
    unsupported: tuple[str, ...] = ()
    error: str | None = None
    samples: int = 0
    agreement: float | None = None
    max_abs_difference: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {**asdict(self), "unsupported": list(self.unsupported)}

    @classmethod
    def of(cls, memory: MicroMemory, compared: Comparison | None) -> Microcontroller:
        """What the interpreter said of memory and, where the file runs, how far its outputs are from the model's."""
        runtime = f"tflite-micro {version('tflite-micro')}"
        if compared is None:
            return cls(runtime, memory.flash, memory.arena, memory.unsupported, memory.error)
        return cls(
            runtime,
            memory.flash,
            memory.arena,
            samples=compared.samples,
            agreement=compared.agreement,
            max_abs_difference=compared.max_abs,
        )

    @property
    def sentence(self) -> str:
        """For the report's notes."""
        flash = f"{size(self.flash_bytes)} of flash for the file"
        if self.arena_bytes is None:
            why = f"it has no kernel for {', '.join(self.unsupported)}" if self.unsupported else self.error
            return f"The interpreter for microcontrollers ({self.runtime}) does not run the file: {why}."
        said = (
            f"; {percent(self.agreement, 2)} of the predictions on {self.samples} samples are the trained model's"
            if self.agreement is not None
            else ""
        )
        return (
            f"On a microcontroller the network needs {size(self.arena_bytes)} of RAM (arena, counted in {self.runtime} "
            f"on 64 bits) and {flash}, besides the interpreter itself{said}."
        )


@dataclass
class Findings:
    """Everything that an export found out.

    Attributes:
        results: ``"dense"`` (if there is one), ``"fake_quantized"``, ``"deployed"`` (if a file was written).
        artifacts: One entry for each written file, as in the report.
        packed: The packed file, if it was written.
        comparisons: Format → how far its outputs are from the model's; empty if nothing was verified.
        divergence: Where the deployed form begins to differ by more than rounding, if it does.
        integers: How much of the ONNX file's arithmetic ONNX Runtime does in integers, where it is quantized.
        microcontroller: What the interpreter for microcontrollers said of the LiteRT file, where it is installed.
        ratio: Latency of the deployed form ÷ that of the dense one, in the same runtime.
        notes: What a reader should know about the numbers.
        failures: What was asked for and could not be done, with the reason, a sentence each.
    """

    results: dict[str, Result] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    packed: PackedFile | None = None
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    divergence: SiteError | None = None
    integers: IntegerShare | None = None
    microcontroller: Microcontroller | None = None
    ratio: Ratio | None = None
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def agreement(self) -> float | None:
        """Share of predictions in which the deployed form and the trained model agree; ``None`` if it is unknown."""
        form = deployed_of(self.comparisons)
        return None if form is None else self.comparisons[form].agreement

    @property
    def written(self) -> list[str]:
        """The formats that were written."""
        return [item["format"] for item in self.artifacts]

    def judge_start(self, monitor: str | None, mode: str) -> None:
        """Take the metrics of the weights at the start of a fit away again where nothing may be compared with them.

        Args:
            monitor: The metric that limits look at, if any.
            mode: Whether more of it is better (``"max"``) or less (``"min"``).
        """
        start, trained = self.results["dense"], self.results["fake_quantized"]
        why = untrained_start(start.metrics, trained.metrics, monitor, mode)
        if why is None:
            self.notes.append(
                f"The dense model is the one this fit began with ({start.source}). Give dense=... to compare with one "
                f"that was trained as long."
            )
        else:
            start.metrics = {}
            self.notes.append(
                f"No dense control: {why}, so no accuracy is compared with theirs. Give dense=... a checkpoint of the "
                f"same network, trained without compression."
            )

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Make what goes wrong inside a failure, so that everything else is done.

        Args:
            what: Beginning of the sentence, such as ``"onnx was not written"``.

        Example:
            >>> found = Findings()
            >>> with found.attempt("onnx was not written"):
            ...     raise RuntimeError("no room")
            >>> found.failures
            ['onnx was not written: RuntimeError: no room']
        """
        try:
            yield
        except Exception as error:  # Whatever it is, the training before it must not be lost.
            self.failures.append(f"{what}: {reason(error)}")
