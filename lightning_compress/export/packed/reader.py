"""Reading packed files, tensor by tensor, with everything checked before it is used."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.export.packed import layout
from lightning_compress.export.packed.codec import byte_planes as planes
from lightning_compress.export.packed.codec import weight as weights
from lightning_compress.export.packed.container import Container
from lightning_compress.export.packed.layout import INTEGERS, PLAIN, SAME, SPARSE, Entry
from lightning_compress.export.packed.state_json import with_tensors
from lightning_compress.export.packed.varints import Reader
from lightning_compress.quantization import attach, strip
from lightning_compress.quantization.fake_quantize.functional import spread_scale

LARGEST_EXPANSION = 1000
"""Without a model to compare shapes with, a tensor may take this many times the file's bytes."""
STATE_EXPANSION = 16
"""Scales and the state of quantizers may take this many times the file's bytes."""


class PackedReader:
    """An open packed file, read tensor by tensor as they are asked for.

    Args:
        path: The file.

    Raises:
        CompressionError: As ``load_packed``.

    Attributes:
        entries: State-dict key → what is stored for it.
        metadata: What was given to ``save_packed``.
        prefix: Path of the submodule that is quantized, with its dot; ``None`` where nothing is.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from lightning_compress.export.packed.save_load import save_packed
        >>> file = save_packed(nn.Linear(3, 2), Path(tempfile.mkdtemp()) / "net.packed", {"classes": ["a", "b"]})
        >>> with PackedReader(file.path) as reader:
        ...     print(list(reader.entries), reader.metadata, reader.tensor("bias").shape)
        ['weight', 'bias'] {'classes': ['a', 'b']} torch.Size([2])
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._container = Container(path)
        self._all = self._container.layout.entries
        self._pools: dict[int, NDArray[np.uint8]] = {}
        self.entries: dict[str, Entry] = {entry.name: entry for entry in self._all if entry.name}
        try:
            extra = json.loads(self._container.layout.extra)
            self.metadata: Any = extra["metadata"]
            self.prefix: str | None = extra["prefix"]
            self._state: Any = extra["quantization"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self._container.__exit__(None, None, None)
            raise CompressionError(f"{path}: damaged, its metadata cannot be read ({error!r}).") from None
        if not isinstance(self.prefix, str | None):
            raise CompressionError(f"{path}: damaged, the prefix is {self.prefix!r}.")

    def __enter__(self) -> PackedReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.__exit__(kind, error, trace)

    def check(self) -> None:
        """Check all checksums."""
        self._container.check()

    def check_fits(self, state: Mapping[str, torch.Tensor], model: str) -> None:
        """Check that the file holds exactly these tensors, with their shapes and types."""
        where = self._container.path
        for names, other, text in (
            (state.keys(), self.entries, f"the file lacks tensors that {model} has"),
            (self.entries, state.keys(), f"{model} lacks tensors that the file has"),
        ):
            missing = [name for name in names if name not in other]
            if missing:
                shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
                raise CompressionError(f"{where}: {text}: {shown}. Load it into the architecture that was exported.")
        for name, tensor in state.items():
            entry = self.entries[name]
            dtype = layout.DTYPES[entry.dtype]
            if entry.shape != tuple(tensor.shape):
                raise CompressionError(
                    f"{where}, {name}: the file holds shape {entry.shape}, {model} has {tuple(tensor.shape)}. "
                    f"Load it into the architecture that was exported."
                )
            if str(tensor.dtype) != f"torch.{dtype}":
                raise CompressionError(
                    f"{where}, {name}: the file holds {dtype}, {model} has {tensor.dtype}. "
                    f"Convert the model with .to(torch.{dtype}) first."
                )
            if tensor.is_meta:
                raise CompressionError(
                    f"{where}, {name}: {model} is on the meta device. Call .to_empty(device='cpu') first."
                )

    def tensor(self, name: str, *, fitting: bool = False) -> torch.Tensor:
        """Read a tensor: quantized weights as integers times scale, in the type that was trained.

        Args:
            name: Its key in the ``state_dict``.
            fitting: Whether its shape was checked against a model already. Otherwise a tensor of more than
                ``LARGEST_EXPANSION`` times the file's size is refused.
        """
        if name not in self.entries:
            raise CompressionError(f"{self._container.path}: there is no tensor {name!r} in the file.")
        entry = self._resolved(self.entries[name])
        self._refuse_bomb(entry, LARGEST_EXPANSION if not fitting else None)
        if entry.kind != INTEGERS:
            return self._numbers(entry, name)
        integers = torch.from_numpy(self._integers(entry, name))
        scale = self._scale(entry, name)
        wide = spread_scale(scale, integers.shape, entry.axis, entry.group or None)
        return (integers.to(scale.dtype).mul_(wide)).to(_dtype(entry))

    def integers(self, name: str) -> torch.Tensor:
        """Read the integers of a quantized weight: int8, its shape."""
        entry = self._resolved(self.entries[name])
        if entry.kind != INTEGERS:
            raise CompressionError(f"{self._container.where(name)}: not quantized.")
        self._refuse_bomb(entry, LARGEST_EXPANSION)
        return torch.from_numpy(self._integers(entry, name))

    def quantization(self) -> dict[str, Any] | None:
        """The state of the quantization for ``lightning_compress.quantization.attach``; ``None`` if there is none."""
        if self.prefix is None:
            return None
        where = self._container.path
        scales = {e.scale for e in self._all if e.kind == INTEGERS}
        unnamed = [entry for k, entry in enumerate(self._all) if not entry.name and k not in scales]
        total = sum(entry.nbytes for entry in unnamed)
        if total > STATE_EXPANSION * self._container.size:
            raise CompressionError(f"{where}: damaged, its quantizers would take {total} bytes.")
        tensors = iter([self._numbers(self._resolved(entry), "quantizers") for entry in unnamed])
        try:
            state = with_tensors(self._state, tensors)
        except CompressionError as error:
            raise CompressionError(f"{where}: damaged, its quantizers hold {error}.") from None
        if not isinstance(state, dict) or next(tensors, None) is not None or not _sane_bits(state):
            raise CompressionError(f"{where}: damaged, its quantizers are not what was saved.")
        state["weight_scales"] = {
            name.removeprefix(self.prefix): self._scale(entry, name)
            for name, entry in self.entries.items()
            if entry.kind == INTEGERS
        }
        return state

    def attach(self, model: nn.Module, state: dict[str, Any]) -> None:
        """Attach a state that ``quantization`` gave."""
        try:
            attach(model.get_submodule((self.prefix or "").removesuffix(".")), state)
        except (AttributeError, KeyError, TypeError, IndexError, ValueError, RuntimeError) as error:
            strip(model)
            raise CompressionError(
                f"{self._container.path}: the quantizers do not fit {type(model).__name__} ({error!r}). Load with "
                f"quantized=False for the weights alone."
            ) from error

    def _resolved(self, entry: Entry) -> Entry:
        return self._all[entry.chunk] if entry.kind == SAME else entry

    def _refuse_bomb(self, entry: Entry, limit: int | None) -> None:
        if limit is not None and entry.nbytes > limit * self._container.size:
            raise CompressionError(
                f"{self._container.where(entry.name)}: shape {entry.shape} is more than {limit} times the file. "
                f"If the file is yours, load it into its model."
            )

    def _integers(self, entry: Entry, name: str) -> NDArray[np.int8]:
        return weights.decode_integers(
            self._container.chunk(entry.chunk, name), entry.shape, self._container.where(name)
        )

    def _scale(self, entry: Entry, name: str) -> torch.Tensor:
        scale = self._all[entry.scale]
        self._refuse_bomb(scale, STATE_EXPANSION)
        if scale.dtype not in layout.FLOATS or scale.shape != _scale_shape(entry):
            raise CompressionError(
                f"{self._container.where(name)}: damaged, its scale is {layout.DTYPES[scale.dtype]} of shape "
                f"{scale.shape}, which does not fit shape {entry.shape}."
            )
        return self._numbers(scale, name)

    def _numbers(self, entry: Entry, name: str) -> torch.Tensor:
        where = self._container.where(name)
        if entry.kind == SPARSE and entry.dtype in layout.FLOATS and entry.shape:
            chunk = self._container.chunk(entry.chunk, name)
            data = weights.decode_sparse(chunk, entry.shape, layout.WIDTHS[entry.dtype], where)
        elif entry.kind == PLAIN:
            data = self._plain(entry, name)
        else:
            raise CompressionError(f"{where}: damaged, numbers were expected where there are integers.")
        if not data.size:
            return torch.empty(entry.shape, dtype=_dtype(entry))
        found = torch.from_numpy(data).view(_dtype(entry))
        return found.reshape(entry.shape)

    def _plain(self, entry: Entry, name: str) -> NDArray[np.uint8]:
        """Bytes of a plain tensor, alone in its chunk or in a pool of small ones of the same type."""
        members = [e for e in self._all if e.kind == PLAIN and e.chunk == entry.chunk]
        if any(e.dtype != entry.dtype for e in members):
            raise CompressionError(f"{self._container.where(name)}: damaged, a chunk holds more than one type.")
        self._refuse_bomb(replace(entry, shape=(sum(e.numel for e in members if not e.name),)), STATE_EXPANSION)
        if entry.chunk not in self._pools:
            width = layout.WIDTHS[entry.dtype]
            reader = Reader(self._container.chunk(entry.chunk, name), self._container.where(name))
            count = sum(e.numel for e in members)
            data = planes.decode(reader, count, width, rotate=entry.dtype in layout.FLOATS)
            reader.end()
            if len(members) == 1:
                return data
            self._pools[entry.chunk] = data
        start = 0
        for member in members:
            if member is entry:
                break
            start += member.nbytes
        return self._pools[entry.chunk][start : start + entry.nbytes].copy()


def _scale_shape(entry: Entry) -> tuple[int, ...] | None:
    """Shape that the scale of quantized integers must have; ``None`` where axis and group make no sense."""
    if entry.axis is None:
        return () if entry.group == 0 else None
    channels = entry.shape[entry.axis]
    if entry.group == 0:
        return (channels,)
    inputs = entry.numel // max(channels, 1)
    return (channels, -(-inputs // entry.group)) if entry.group <= inputs else None


def _sane_bits(tree: Any) -> bool:
    """Whether all bit widths in a state are such: 2 to the power of another one could take all memory."""
    if isinstance(tree, dict):
        widths = [value for key, value in tree.items() if key.endswith("bits")]
        return all(w is None or (type(w) is int and 1 <= w <= 16) for w in widths) and all(
            _sane_bits(value) for value in tree.values()
        )
    return all(_sane_bits(value) for value in tree) if isinstance(tree, list) else True


def _dtype(entry: Entry) -> torch.dtype:
    return getattr(torch, layout.DTYPES[entry.dtype])
