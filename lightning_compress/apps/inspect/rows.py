"""Rows of ``inspect``: one tensor, and a file of tensors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_compress.metrics.zero_patterns import empty_channels, pattern_of

_LEVELS = 1 << 16


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a file.

    Attributes:
        name: Its name in the file.
        shape: Shape.
        dtype: Type of an element in the file.
        bits: Bits of an element: of the integer grid where it is quantized, of the type where not.
        zeros: How many elements are zero.
        pattern: Pattern of the zeros; see ``zeros.pattern_of``.
        empty_channels: Output channels that are zero altogether.
        dense_bytes: Bytes in float32 (in its own type where it is no number with a fraction).
        stored_bytes: Bytes in the file, with its scales.
        entropy_bytes: Fewest bytes for independent elements with their frequencies (Shannon 1948); ``None`` for floats
            of which hardly two are equal.
        floating: Whether it stands for numbers with a fraction, as weights do.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bits: int
    zeros: int
    pattern: str
    empty_channels: int
    dense_bytes: int
    stored_bytes: int
    entropy_bytes: float | None
    floating: bool = True

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / self.numel if self.numel else 0.0

    def as_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {**asdict(self), "shape": list(self.shape), "numel": self.numel, "sparsity": self.sparsity}


@dataclass
class Inspection:
    """Everything that was found in a file or directory.

    Attributes:
        path: What was looked at.
        kind: ``"checkpoint"``, ``"safetensors"``, ``"packed"``, ``"onnx"`` or ``"export"``.
        tensors: A row for each tensor.
        bytes: Bytes on disk.
        zipped_bytes: Bytes after deflate at level 6; ``None`` for directories and large files.
        facts: What else the file says: name → text.
        files: For an export, the inspected files by name.
    """

    path: Path
    kind: str
    tensors: list[TensorRow] = field(default_factory=list)
    bytes: int = 0
    zipped_bytes: int | None = None
    facts: dict[str, str] = field(default_factory=dict)
    files: dict[str, Inspection] = field(default_factory=dict)

    def totals(self) -> dict[str, Any]:
        """Sums over all tensors; the sparsity is that of weights with two or more dimensions."""
        weights = [row for row in self.tensors if len(row.shape) > 1 and row.floating]
        numel = sum(row.numel for row in weights)
        bounds = [row.stored_bytes if row.entropy_bytes is None else row.entropy_bytes for row in self.tensors]
        dense = sum(row.dense_bytes for row in self.tensors)
        return {
            "tensors": len(self.tensors),
            "elements": sum(row.numel for row in self.tensors),
            "sparsity": sum(row.zeros for row in weights) / numel if numel else 0.0,
            "bits": sum(row.numel * row.bits for row in weights) / numel if numel else None,
            "dense_bytes": dense,
            "stored_bytes": sum(row.stored_bytes for row in self.tensors),
            "entropy_bytes": sum(bounds) if any(row.entropy_bytes is not None for row in self.tensors) else None,
            "bytes": self.bytes,
            "zipped_bytes": self.zipped_bytes,
            "compression_ratio": dense / self.bytes if self.bytes else None,
        }

    def as_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "totals": self.totals(),
            "facts": self.facts,
            "tensors": [row.as_dict() for row in self.tensors],
            "files": {name: file.as_dict() for name, file in self.files.items()},
        }


def row(
    name: str, tensor: Tensor, *, bits: int | None = None, stored: int | None = None, scaled: bool = False
) -> TensorRow:
    """Describe one tensor.

    Args:
        name: Its name.
        tensor: Its values.
        bits: Bits of an element where they are not those of its type.
        stored: Bytes in the file where they are not those of its values.
        scaled: Whether it holds integers that stand for floats.
    """
    floating = scaled or tensor.is_floating_point()
    own = tensor.numel() * tensor.element_size()
    return TensorRow(
        name=name,
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        bits=tensor.element_size() * 8 if bits is None else bits,
        zeros=tensor.numel() - int(torch.count_nonzero(tensor)),
        pattern=pattern_of(tensor) if floating else "none",
        empty_channels=empty_channels(tensor) if floating else 0,
        dense_bytes=4 * tensor.numel() if floating else own,
        stored_bytes=own if stored is None else stored,
        entropy_bytes=_entropy(tensor),
        floating=floating,
    )


def _entropy(tensor: Tensor) -> float | None:
    """Bytes of independent elements with their frequencies; for floats, of the zeros' places and whole others."""
    if not tensor.numel():
        return 0.0
    if tensor.is_complex() or tensor.element_size() > 8:
        return None
    if tensor.is_floating_point():
        zero = 1 - int(torch.count_nonzero(tensor)) / tensor.numel()
        places = sum(-p * math.log2(p) for p in (zero, 1 - zero) if p)
        return tensor.numel() * (places / 8 + (1 - zero) * tensor.element_size())
    counts = tensor.flatten().unique(return_counts=True)[1].double()
    if len(counts) > _LEVELS:
        return None
    shares = counts / tensor.numel()
    return abs(float((shares * shares.log2()).sum())) * tensor.numel() / 8
