"""The packed format: a compressed model as small as information theory allows, safe to load.

Quantized weights are entropy-coded integers whose zeros cost next to nothing, pruned float weights leave out their
zeros, everything else in the ``state_dict`` is kept bit for bit. ``FORMAT.md``, in this folder, documents the format
to the byte.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.export.packed import container, layout
from lightning_compress.export.packed.reader import PackedReader
from lightning_compress.export.packed.writer import Packing
from lightning_compress.quantization import find

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class PackedTensor:
    """What a tensor takes in a packed file.

    Attributes:
        name: Its key in the ``state_dict``.
        kind: ``"integers"``, ``"sparse"``, ``"plain"`` or ``"same"`` (as another tensor: tied).
        shape: Shape.
        bits: Bit width of an element: of the integers, or of the numbers as they are.
        bytes: Bytes in the file, with its scales.
        dense_bytes: Bytes in memory as it was trained.
        entropy_bound: For integers, the fewest bytes for independent integers with their frequencies; else ``None``.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    bits: int
    bytes: int
    dense_bytes: int
    entropy_bound: float | None


@dataclass(frozen=True)
class PackedFile:
    """A packed file that was written.

    Attributes:
        path: The file.
        bytes: Its size.
        breakdown: Part → bytes, which sum to ``bytes``: ``header``, ``layout``, ``positions``, ``values``, ``scales``,
            ``floats`` and ``quantizers``.
        entropy_bound: The fewest bytes for all integers (mask and values), were they independent within each tensor.
        dense_bytes: Bytes of all parameters and buffers as they were trained.
        tensors: A row for each tensor; their bytes sum to ``bytes`` without ``header``, ``layout``, ``quantizers``.
    """

    path: Path
    bytes: int
    breakdown: Mapping[str, int]
    entropy_bound: float
    dense_bytes: int
    tensors: tuple[PackedTensor, ...]

    @property
    def compression_ratio(self) -> float:
        """Dense bytes over bytes of the file."""
        return self.dense_bytes / self.bytes


def save_packed(
    model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None
) -> PackedFile:
    """Write a model to a packed file; equal models give equal bytes.

    Args:
        model: Any module. Weights that quantization reaches are stored as integers and scales once it is live;
            float weights of which many are zero are stored without the zeros; the rest bit for bit.
        path: The file to write, atomically.
        metadata: Anything that JSON can hold, to be kept in the file.

    Raises:
        CompressionError: The file cannot be written, or the model holds what it cannot store.

    Example:
        >>> import tempfile
        >>> net = nn.Linear(100, 100)
        >>> file = save_packed(net, Path(tempfile.mkdtemp()) / "net.packed")
        >>> sum(file.breakdown.values()) == file.bytes
        True
    """
    packing = Packing(model, metadata)
    header, listing = container.write(Path(path), packing.entries, packing.chunks, packing.extra)
    parts = {"header": header, "layout": listing, **packing.parts}
    tensors = tuple(
        PackedTensor(
            name=row.entry.name,
            kind=layout.KINDS[row.entry.kind],
            shape=row.entry.shape,
            bits=row.bits,
            bytes=row.bytes,
            dense_bytes=row.entry.nbytes,
            entropy_bound=row.entropy_bound,
        )
        for row in packing.rows()
    )
    return PackedFile(
        path=Path(path),
        bytes=sum(parts.values()),
        breakdown=parts,
        entropy_bound=sum(row.entropy_bound or 0.0 for row in tensors),
        dense_bytes=sum(row.dense_bytes for row in tensors if row.kind != "same"),
        tensors=tensors,
    )


def load_packed(path: str | os.PathLike[str], model: Model, *, quantized: bool = True) -> Model:
    """Load a packed file into a freshly made model, in place.

    Checksums and shapes are checked before the first weight changes.

    Args:
        path: The file.
        model: A model of the architecture that was saved.
        quantized: Whether to quantize activations too, so that the outputs are those of the fake-quantized model;
            ``False`` gives a plain float model whose weights have the quantized values.

    Returns:
        The same model.

    Raises:
        CompressionError: The file is missing, damaged or newer than this package, or does not fit the model.

    Example:
        >>> import tempfile
        >>> net = nn.Linear(3, 2)
        >>> file = save_packed(net, Path(tempfile.mkdtemp()) / "net.packed")
        >>> torch.equal(load_packed(file.path, nn.Linear(3, 2)).weight, net.weight)
        True
    """
    with PackedReader(path) as reader:
        state = model.state_dict()
        reader.check_fits(state, type(model).__name__)
        reader.check()
        if quantized and reader.prefix is not None and find(model) is not None:
            raise CompressionError(
                f"{path}: {type(model).__name__} is quantized already. Load into a freshly made model."
            )
        attached = reader.quantization() if quantized else None
        with torch.no_grad():
            for name, target in state.items():
                target.copy_(reader.tensor(name))
        if attached is not None:
            reader.attach(model, attached)
    return model
