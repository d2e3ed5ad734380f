"""The first layer at which a written file differs from the model: activations at every quantizer, in order."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.export.activations import Activation, activations_of
from lightning_compress.export.file_format import FileFormat
from lightning_compress.export.formats import format_of
from lightning_compress.foundation.output_difference import differences, sizes

ROUNDING = 0.05
"""Mean difference, in steps of a quantizer, up to which kernels may round differently; the rest of a network adds to it
what rounded differently before."""
JUMP, CERTAIN = 8.0, 0.5
"""A place diverges where its mean difference is this many times the largest before it, or this many steps."""


@dataclass(frozen=True)
class SiteError:
    """How far an activation of the file is from the model's.

    Attributes:
        site: Name of the activation quantizer; ``"output"`` for what the file gives.
        layers: Layers that made the activation from those before it.
        mean_steps: Mean absolute difference in steps of the quantizer; for ``"output"`` relative to the largest
            finite absolute value that the model gives.
        max_steps: Largest absolute difference, in the same unit.
    """

    site: str
    layers: tuple[str, ...]
    mean_steps: float
    max_steps: float

    def __str__(self) -> str:
        made = f"{', '.join(self.layers)} (seen at {self.site})" if self.layers else self.site
        unit = "of the largest output" if self.site == "output" else "quantization steps"
        return f"{made}: {self.mean_steps:.3g} {unit} off on average, {self.max_steps:.3g} at most"

    def as_dict(self) -> dict[str, Any]:
        """JSON types: ``None`` for what is not finite."""
        return {
            "site": self.site,
            "layers": list(self.layers),
            "mean_steps": self.mean_steps if math.isfinite(self.mean_steps) else None,
            "max_steps": self.max_steps if math.isfinite(self.max_steps) else None,
        }


def can_trace(path: str | os.PathLike[str]) -> bool:
    """Whether activations inside a file of this format can be looked at."""
    kind = type(format_of(Path(path)))
    return kind.activations is not FileFormat.activations


def site_errors(
    path: str | os.PathLike[str],
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    threads: int = 1,
) -> list[SiteError]:
    """Compare a file's activations with the model's at every activation quantizer.

    Args:
        path: A file of a format whose activations can be looked at; see ``can_trace``.
        model: The model that it was written from, fake-quantized; it is not changed.
        args: Positional arguments of one call.
        kwargs: Keyword arguments.
        threads: Threads of ONNX Runtime.

    Returns:
        One entry for each quantizer in execution order, then the output.

    Raises:
        CompressionError: The file cannot be loaded or run.
    """
    path, kwargs = Path(path), dict(kwargs or {})
    model = copy.deepcopy(model).cpu().eval()
    expected = activations_of(model, args, kwargs)
    found = format_of(path).activations(path, model, args, kwargs, threads)
    if found is None:
        raise CompressionError(f"{path}: the activations inside a file of this format cannot be looked at.")
    errors = []
    for theirs, ours in _pairs(expected.quantized, found.quantized):
        if theirs.value.numel() != ours.value.numel() or not theirs.value.numel():
            continue
        difference = _difference(ours, theirs.value) / theirs.grid[0]
        layers = ours.layers or (theirs.name.partition(":")[0],)
        errors.append(SiteError(theirs.name, layers, float(difference.mean()), float(difference.max())))
    pairs = [
        (ours, theirs)
        for ours, theirs in zip(found.outputs, expected.outputs, strict=False)
        if ours.shape == theirs.shape
    ]
    if pairs and pairs[0][0].numel():
        difference = differences(*pairs[0]) / (float(sizes(pairs[0][1]).max()) or 1.0)
        errors.append(SiteError("output", found.last, float(difference.mean()), float(difference.max())))
    return errors


def _difference(ours: Activation, theirs: Tensor) -> Tensor:
    """Absolute differences, in the order of dimensions in which they are less where channels may be last."""
    moved = [ours.value.movedim(-1, 1)] if ours.channels_last and ours.value.ndim > 2 else []
    found = (differences(value.reshape(theirs.shape), theirs) for value in (ours.value, *moved))
    return min(found, key=lambda difference: float(difference.mean()))


def first_divergence(errors: Sequence[SiteError]) -> SiteError | None:
    """The first place that differs by more than kernels may round; ``None`` where none does.

    Example:
        >>> fine, bad = SiteError("a", (), 0.01, 1.0), SiteError("b", ("fc",), 3.0, 9.0)
        >>> first_divergence([fine, bad]).layers, first_divergence([fine])
        (('fc',), None)
    """
    largest = 0.0
    for error in errors:
        # An output has no steps: it is measured against its own size.
        most = ROUNDING if error.site == "output" else min(CERTAIN, max(ROUNDING, JUMP * largest))
        if not error.mean_steps <= most:
            return error
        largest = max(largest, error.mean_steps)
    return None


def _pairs(expected: list[Activation], found: list[Activation]) -> Iterator[tuple[Activation, Activation]]:
    """The same places on both sides, in order."""
    if len(expected) == len(found):
        yield from zip(expected, found, strict=True)
        return
    # An exporter leaves out what nothing reads: grids tell which places are the same.
    theirs, ours = ([f"{item.grid[0]:.6g} {item.grid[1]}" for item in side] for side in (expected, found))
    for block in SequenceMatcher(None, theirs, ours, autojunk=False).get_matching_blocks():
        yield from zip(expected[block.a : block.a + block.size], found[block.b : block.b + block.size], strict=True)
