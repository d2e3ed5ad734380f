"""Reading packed files, tensor by tensor, with everything checked before it is used."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lightning_compress.errors import CompressionError, first_line
from lightning_compress.export.packed import layout
from lightning_compress.export.packed.codec import byte_planes as planes
from lightning_compress.export.packed.codec import weight as weights
from lightning_compress.export.packed.container import Container
from lightning_compress.export.packed.layout import INTEGERS, PLAIN, SAME, SPARSE, Entry
from lightning_compress.export.packed.state_json import is_deep, with_tensors
from lightning_compress.export.packed.varints import Reader
from lightning_compress.quantization import attach, strip
from lightning_compress.quantization.fake_quantize.scale_shapes import spread_scale

LARGEST_EXPANSION = 1000
"""Without a model to compare shapes with, all tensors together may take this many times the file's bytes."""
STATE_EXPANSION = 16
"""Scales and the state of quantizers may take as much as the model and this many times the file's bytes."""


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
        self._pools: dict[int, list[Entry]] = {}
        self._starts: dict[int, int] = {}
        for entry in self._all:
            if entry.kind == PLAIN:
                pool = self._pools.setdefault(entry.chunk, [])
                self._starts[id(entry)] = self._starts[id(pool[-1])] + pool[-1].nbytes if pool else 0
                pool.append(entry)
        self._decoded: dict[int, NDArray[np.uint8]] = {}
        own = [entry for entry in self._all if entry.kind != SAME]
        self._bytes = sum(entry.nbytes for entry in own)
        self._unnamed_bytes = sum(entry.nbytes for entry in own if not entry.name)
        self._model_bytes: int | None = None
        self.entries: dict[str, Entry] = {entry.name: entry for entry in self._all if entry.name}
        try:
            extra = json.loads(self._container.layout.extra)
            self.metadata: Any = extra["metadata"]
            self.prefix: str | None = extra["prefix"]
            self._state: Any = extra["quantization"]
            if not isinstance(self.prefix, str | None) or is_deep(extra):
                raise ValueError("no such prefix, or too deeply nested")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self._container.__exit__(None, None, None)
            raise CompressionError(f"{path}: damaged, its metadata cannot be read ({str(error)[:200]}).") from None

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
        self._model_bytes = sum(tensor.nbytes for tensor in state.values())

    def tensor(self, name: str) -> torch.Tensor:
        """Read a tensor: quantized weights as integers times scale, in the type that was trained.

        Args:
            name: Its key in the ``state_dict``.

        Raises:
            CompressionError: There is no such tensor, it is damaged, or the file holds more than
                ``LARGEST_EXPANSION`` times its own bytes and no model has shown by ``check_fits`` that it should.
        """
        if name not in self.entries:
            raise CompressionError(f"{self._container.path}: there is no tensor {name!r} in the file.")
        entry = self._resolved(self.entries[name])
        self._refuse_bomb(name)
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
        self._refuse_bomb(name)
        return torch.from_numpy(self._integers(entry, name))

    def quantization(self) -> dict[str, Any] | None:
        """The state of the quantization for ``lightning_compress.quantization.attach``; ``None`` if there is none."""
        if self.prefix is None:
            return None
        where = self._container.path
        self._refuse_bomb("")
        scales = {e.scale for e in self._all if e.kind == INTEGERS}
        unnamed = [entry for k, entry in enumerate(self._all) if not entry.name and k not in scales]
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
        except (AttributeError, KeyError, TypeError, IndexError, ValueError, RuntimeError, OverflowError) as error:
            strip(model)
            raise CompressionError(
                f"{self._container.path}: the quantizers do not fit {type(model).__name__} ({first_line(error)}). Load "
                f"with quantized=False for the weights alone."
            ) from error

    def _resolved(self, entry: Entry) -> Entry:
        return self._all[entry.chunk] if entry.kind == SAME else entry

    def _refuse_bomb(self, name: str) -> None:
        """Refuse to decode more than the model holds or, without one, than a multiple of the file."""
        where, size = self._container.where(name), self._container.size
        if self._model_bytes is None:
            if self._bytes > LARGEST_EXPANSION * size:
                raise CompressionError(
                    f"{where}: the file's tensors would take {self._bytes} bytes, more than {LARGEST_EXPANSION} times "
                    f"the file. If it is yours, load it into its model."
                )
        # Named tensors have the model's own shapes and types.
        elif self._unnamed_bytes > self._model_bytes + STATE_EXPANSION * size:
            raise CompressionError(f"{where}: damaged, its quantizers would take {self._unnamed_bytes} bytes.")

    def _integers(self, entry: Entry, name: str) -> NDArray[np.int8]:
        return weights.decode_integers(
            self._container.chunk(entry.chunk, name), entry.shape, self._container.where(name)
        )

    def _scale(self, entry: Entry, name: str) -> torch.Tensor:
        return self._numbers(self._all[entry.scale], name)

    def _numbers(self, entry: Entry, name: str) -> torch.Tensor:
        where = self._container.where(name)
        if entry.kind == SPARSE:
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
        pool = self._pools[entry.chunk]
        if entry.chunk not in self._decoded:
            reader = Reader(self._container.chunk(entry.chunk, name), self._container.where(name))
            count, width = sum(e.numel for e in pool), layout.WIDTHS[entry.dtype]
            data = planes.decode(reader, count, width, rotate=entry.dtype in layout.FLOATS)
            reader.end()
            if len(pool) == 1:
                return data
            self._decoded[entry.chunk] = data
        start = self._starts[id(entry)]
        return self._decoded[entry.chunk][start : start + entry.nbytes].copy()


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
