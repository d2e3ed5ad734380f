"""What goes into a packed file: which tensor is stored how, in which chunk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.export.packed import layout
from lightning_compress.export.packed.codec import byte_planes as planes
from lightning_compress.export.packed.codec import weight as weights
from lightning_compress.export.packed.codec.nonzero_values import LARGEST
from lightning_compress.export.packed.layout import INTEGERS, PLAIN, POOLED, SAME, SPARSE, Entry
from lightning_compress.export.packed.state_json import DEEPEST, is_deep, without_tensors
from lightning_compress.quantization import Quantization, find
from lightning_compress.quantization.fake_quantize.integers import QuantizedWeight
from lightning_compress.quantization.quantizers.weight import WeightQuantizer


@dataclass(frozen=True)
class Row:
    """What a named tensor takes.

    Attributes:
        entry: The tensor.
        bits: Bit width of its elements.
        bytes: Bytes in chunks, with its scales.
        entropy_bound: For integers, the fewest bytes for independent ones.
    """

    entry: Entry
    bits: int
    bytes: int
    entropy_bound: float | None


class Packing:
    """A model taken apart into entries and chunks.

    Attributes:
        entries: All tensors: the named ones in the order of the ``state_dict``, then scales, then quantizers' state.
        chunks: Their data.
        parts: Part → bytes of the chunks.
        extra: JSON text with metadata and the quantizers' state.
    """

    def __init__(self, model: nn.Module, metadata: Mapping[str, Any] | None) -> None:
        self.entries: list[Entry] = []
        self.chunks: list[bytes] = []
        self.parts = dict.fromkeys(("positions", "values", "scales", "floats", "quantizers"), 0)
        self._bytes: dict[int, float] = {}
        self._bounds: dict[int, float] = {}
        quantization = find(model)
        live = quantization if quantization is not None and quantization.enabled else None
        prefix = "" if live is None else _prefix(model, live)
        layers = {} if live is None else {prefix + name: layer for name, layer in live.layers.items()}
        self._add_model(model, layers)
        state = None if live is None else self._add_state(live)
        extra = {"metadata": metadata, "prefix": None if live is None else prefix, "quantization": state}
        try:
            if is_deep(extra):
                raise ValueError(f"It is nested more than {DEEPEST - 2} deep.")
            self.extra = json.dumps(
                extra,
                separators=(",", ":"),
                ensure_ascii=False,
                allow_nan=False,
            )
        except (TypeError, ValueError, RecursionError) as error:
            raise CompressionError.field(
                "save_packed.metadata", expected="what JSON can hold", got=metadata, fix=str(error)
            ) from None

    def rows(self) -> Iterator[Row]:
        """A row for each named tensor; the bytes sum to those of the chunks that hold them."""
        exact = given = 0.0
        for index, entry in enumerate(self.entries):
            if not entry.name:
                continue
            own = self._bytes.get(index, 0.0)
            if entry.kind == INTEGERS:
                own += self._bytes[entry.scale]
            # Tensors of a pool share its bytes by size; rounding the running sum keeps the total exact.
            exact += own
            bits = entry.bits if entry.kind == INTEGERS else 8 * layout.WIDTHS[entry.dtype]
            yield Row(entry, bits, round(exact) - round(given), self._bounds.get(index))
            given = exact

    def _add_model(self, model: nn.Module, layers: Mapping[str, WeightQuantizer]) -> None:
        first: dict[object, int] = {}
        plain: list[tuple[int, NDArray[np.uint8]]] = []
        scales: list[tuple[int, torch.Tensor]] = []
        for name, tensor in model.state_dict(keep_vars=True).items():
            _check(name, tensor)
            index = len(self.entries)
            # An untied module has a tensor of its own; the same memory under a second name is stored once.
            memory = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else index
            entry = Entry(name, _code(tensor), tuple(tensor.shape), PLAIN, 0)
            if memory in first:
                entry = replace(entry, kind=SAME, chunk=first[memory])
            elif name in layers and tensor.numel():
                weight = layers[name].quantized()
                entry = self._add_integers(entry, weight, layers[name].channel_axis, index)
                scales.append((index, weight.scale))
            elif (coded := self._add_sparse(entry, tensor, index)) is not None:
                entry = coded
            else:
                plain.append((index, _data(tensor)))
            first.setdefault(memory, index)
            self.entries.append(entry)
        self._add_plain(plain, "floats")
        added = []
        for index, scale in scales:
            self.entries[index] = replace(self.entries[index], scale=len(self.entries))
            added.append((len(self.entries), _data(scale)))
            self.entries.append(Entry("", _code(scale), tuple(scale.shape), PLAIN, 0))
        self._add_plain(added, "scales")

    def _add_state(self, quantization: Quantization) -> Any:
        state = quantization.state_dict()
        # The scales of weights stand with the weights.
        state.pop("weight_scales")
        state.pop("weight_steps")
        tensors: list[torch.Tensor] = []
        tree = without_tensors(state, tensors)
        added = []
        for tensor in tensors:
            added.append((len(self.entries), _data(tensor)))
            self.entries.append(Entry("", _code(tensor), tuple(tensor.shape), PLAIN, 0))
        self._add_plain(added, "quantizers")
        return tree

    def _add_integers(self, entry: Entry, weight: QuantizedWeight, channel_axis: int, index: int) -> Entry:
        integers = weight.integers.cpu().numpy()
        if integers.size and max(int(integers.max()), -int(integers.min())) > LARGEST:
            raise CompressionError(f"{entry.name}: its integers exceed ±{LARGEST}, the largest of the packed format.")
        coded = weights.encode_integers(integers)
        self._bounds[index] = coded.entropy_bound
        self._add_chunk(coded, index, "values")
        return replace(
            entry,
            kind=INTEGERS,
            chunk=len(self.chunks) - 1,
            axis=weight.axis,
            # A group that is wider than a channel is the channel.
            group=min(weight.group_size or 0, integers.size // max(integers.shape[channel_axis], 1)),
            bits=weight.bits,
        )

    def _add_sparse(self, entry: Entry, tensor: torch.Tensor, index: int) -> Entry | None:
        if tensor.ndim < 2 or not tensor.numel() or entry.dtype not in layout.FLOATS:
            return None
        coded = weights.encode_sparse(_data(tensor), entry.shape, layout.WIDTHS[entry.dtype])
        if coded is None:
            return None
        self._add_chunk(coded, index, "floats")
        return replace(entry, kind=SPARSE, chunk=len(self.chunks) - 1)

    def _add_chunk(self, coded: weights.Coded, index: int, part: str) -> None:
        self.chunks.append(coded.data)
        self._bytes[index] = len(coded.data)
        self.parts["positions"] += coded.positions
        self.parts[part] += len(coded.data) - coded.positions

    def _add_plain(self, tensors: list[tuple[int, NDArray[np.uint8]]], part: str) -> None:
        pools: dict[object, list[tuple[int, NDArray[np.uint8]]]] = {}
        for index, data in tensors:
            own = index if data.size >= POOLED else None
            pools.setdefault((self.entries[index].dtype, own), []).append((index, data))
        for pool in pools.values():
            dtype = self.entries[pool[0][0]].dtype
            data = pool[0][1] if len(pool) == 1 else np.concatenate([data for _, data in pool])
            self.chunks.append(planes.encode(data, layout.WIDTHS[dtype], rotate=dtype in layout.FLOATS))
            self.parts[part] += len(self.chunks[-1])
            for index, own_data in pool:
                self.entries[index] = replace(self.entries[index], chunk=len(self.chunks) - 1)
                self._bytes[index] = len(self.chunks[-1]) * (own_data.size / data.size if data.size else 1 / len(pool))


def _prefix(model: nn.Module, quantization: Quantization) -> str:
    """Path of the module that was quantized, with a dot behind it."""
    owners = [name for name, module in model.named_modules() if module is quantization.root]
    if not owners:
        raise CompressionError(
            f"save_packed: {type(model).__name__} is a part of {type(quantization.root).__name__}, which was quantized "
            f"as a whole. Save that one, or prepare this part alone."
        )
    return f"{owners[0]}." if owners[0] else ""


def _check(name: str, tensor: object) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise CompressionError(
            f"{name}: the state_dict holds {type(tensor).__name__} here, and the packed format stores tensors alone. "
            f"Keep extra state elsewhere, for example in metadata."
        )
    if not name or "\n" in name:
        raise CompressionError(f"{name!r}: a state_dict key must not be empty or hold a line break.")
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise CompressionError(
            f"{name}: expected a dense tensor with data, got {tensor.layout} on {tensor.device}. Materialize it first."
        )
    _code(tensor, name)


def _code(tensor: torch.Tensor, name: str = "") -> int:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in layout.DTYPES:
        raise CompressionError.field(name, expected=f"a dtype among {', '.join(layout.DTYPES)}", got=dtype)
    return layout.DTYPES.index(dtype)


def _data(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """The bytes of a tensor, little-endian."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else np.zeros(0, np.uint8)
