"""A LiteRT file in the interpreter for microcontrollers: whether it runs, in how much memory, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from lightning_compress.export.litert.micro import micro_memory
from lightning_compress.export.litert.run import LiteRTModel
from lightning_compress.export.signatures import restored
from lightning_compress.export.verification import Comparison
from lightning_compress.foundation.number_text import percent, size


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


Evaluate = Callable[[Callable[..., Any]], Comparison]
"""Runs a form of the network on some data, beside the trained one."""


def on_microcontroller(path: Path, model: nn.Module, evaluate: Evaluate) -> Microcontroller:
    """Run a file in the interpreter for microcontrollers.

    Args:
        path: The file.
        model: The model that it was written from; its forward orders the inputs.
        evaluate: Compares a function of (the model's own output, the call's arguments) with the model.
    """
    memory = micro_memory(path)
    runtime = f"tflite-micro {version('tflite-micro')}"
    if memory.arena is None:
        return Microcontroller(runtime, memory.flash, None, memory.unsupported, memory.error)
    file = LiteRTModel(path, model.forward, kernels="micro")
    compared = evaluate(lambda like, *args, **kwargs: restored(file(*args, **kwargs), like))
    return Microcontroller(
        runtime,
        memory.flash,
        memory.arena,
        samples=compared.samples,
        agreement=compared.agreement,
        max_abs_difference=compared.max_abs,
    )
