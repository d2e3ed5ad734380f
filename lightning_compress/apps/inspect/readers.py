"""Reading each kind of file, tensor by tensor, without executing anything."""

from __future__ import annotations

import json
import math
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_compress.apps.inspect.rows import Inspection, TensorRow, row
from lightning_compress.errors import CompressionError, DoesNotHold, first_line


def checkpoint(path: Path) -> Inspection:
    """A Lightning checkpoint, or what ``torch.save`` wrote of a ``state_dict``."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CompressionError(
            f"{path}: holds more than tensors and primitives, and is not loaded since that would execute its code. "
            f"Load it where you trust it and save its state_dict alone ({first_line(error)})."
        ) from error
    except Exception as error:  # Damage has many names in the unpickler, TypeError and AssertionError among them.
        raise DoesNotHold(f"{path}: cannot be read as a checkpoint ({first_line(error)}).") from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not any(isinstance(value, Tensor) for value in state.values()):
        raise CompressionError.field("inspect", expected="a checkpoint with a state_dict", got=str(path))
    found = Inspection(path, "checkpoint")
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            continue
        if value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise DoesNotHold(f"{path}: {name} has more values than the file holds, or is no dense tensor.")
        # Tied tensors share their storage in the file, too.
        if (key := (value.data_ptr(), tuple(value.shape))) not in seen:
            seen.add(key)
            found.tensors.append(row(str(name), value))
    for name in ("epoch", "global_step", "pytorch-lightning_version"):
        if name in content:
            found.facts[name.replace("_", " ")] = str(content[name])
    callbacks = content.get("callbacks", {})
    for name, own in callbacks.items() if isinstance(callbacks, Mapping) else ():
        if isinstance(own, Mapping) and isinstance(own.get("settings"), Mapping):
            shown = {key: value for key, value in own["settings"].items() if value not in (None, [], {}, ())}
            found.facts[str(name)] = ", ".join(f"{key} {value}" for key, value in shown.items())
            if "enabled" in own:
                found.facts[str(name)] += "; acts" if own["enabled"] else "; does not act yet"
    return found


def safetensors(path: Path) -> Inspection:
    """A safetensors file."""
    from safetensors import SafetensorError, safe_open

    found = Inspection(path, "safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            found.facts = {str(key): str(value) for key, value in (file.metadata() or {}).items()}
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                found.tensors.append(row(name, file.get_tensor(name)))
    except (SafetensorError, OSError, ValueError) as error:
        raise DoesNotHold(f"{path}: cannot be read as safetensors ({first_line(error)}).") from error
    return found


def is_packed(path: Path) -> bool:
    """Whether a file with safetensors inside is one of our packed files."""
    with path.open("rb") as file:
        return path.suffix == ".packed" or b'"lightning-compress":"packed' in file.read(128)


def packed(path: Path) -> Inspection:
    """A packed file; quantized weights are looked at as the integers that they are."""
    from lightning_compress.export.packed.container import Container
    from lightning_compress.export.packed.layout import INTEGERS, KINDS, SAME
    from lightning_compress.export.packed.reader import PackedReader

    found = Inspection(path, "packed")
    kinds: Counter[str] = Counter()
    with ExitStack() as stack:
        try:
            layout = stack.enter_context(Container(path)).layout
            reader = stack.enter_context(PackedReader(path))
            reader.check()
            # Small tensors share a chunk: each counts for its part of it.
            shared: Counter[int] = Counter()
            for entry in layout.entries:
                if entry.kind != SAME:
                    shared[entry.chunk] += entry.nbytes
            for name, entry in reader.entries.items():
                kinds[KINDS[entry.kind]] += 1
                if entry.kind == SAME:
                    continue
                parts = [entry, layout.entries[entry.scale]] if entry.kind == INTEGERS else [entry]
                stored = sum(layout.lengths[e.chunk] * e.nbytes / max(1, shared[e.chunk]) for e in parts)
                quantized = entry.kind == INTEGERS
                values = reader.integers(name) if quantized else reader.tensor(name)
                found.tensors.append(
                    row(name, values, bits=entry.bits if quantized else None, stored=round(stored), scaled=quantized)
                )
        except CompressionError as error:
            raise DoesNotHold(str(error)) from error
        if reader.metadata is not None:
            found.facts["metadata"] = json.dumps(reader.metadata)
    found.facts["stored as"] = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return found


def onnx(path: Path) -> Inspection:
    """An ONNX file: its constants, with the scales of each counted to it."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
        _refuse_lies(model.graph, path, onnx)
        onnx.load_external_data_for_model(model, str(path.parent))
    except (DecodeError, OSError, ValueError, KeyError, onnx.checker.ValidationError) as error:
        raise DoesNotHold(f"{path}: cannot be read as ONNX ({first_line(error)}).") from error
    if not model.graph.node:
        raise DoesNotHold(f"{path}: cannot be read as ONNX (there is no graph in it).")
    found = Inspection(path, "onnx")
    try:
        found.tensors = list(_onnx_rows(model.graph, onnx))
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError) as error:
        raise DoesNotHold(f"{path}: damaged, a constant is not what it says ({first_line(error)}).") from error
    counts = Counter(node.op_type for node in model.graph.node)
    found.facts = {property.key: property.value for property in model.metadata_props}
    found.facts["opset"] = str(max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0))
    found.facts["inputs"] = _values(model.graph.input)
    found.facts["outputs"] = _values(model.graph.output)
    found.facts["quantized activations"] = str(counts["QuantizeLinear"])
    found.facts["operators"] = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return found


def _refuse_lies(graph: Any, path: Path, onnx: Any) -> None:
    """Refuse constants that take more bytes than the file and its side files have, before they are allocated."""
    for item in graph.initializer:
        size = math.prod(item.dims)
        if any(dim < 0 for dim in item.dims) or item.data_type not in onnx.TensorProto.DataType.values():
            raise ValueError(f"{item.name} has type {item.data_type} and shape {list(item.dims)}")
        places = {entry.key: entry.value for entry in item.external_data}
        stored = item.ByteSize()
        if item.data_location == onnx.TensorProto.EXTERNAL:
            side = path.parent / places.get("location", "")
            if not side.resolve().is_relative_to(path.parent.resolve()) or not side.is_file():
                raise ValueError(f"{item.name} should be in {places.get('location')}, which is not beside it")
            stored = min(int(places.get("length") or side.stat().st_size), side.stat().st_size)
        # Four-bit integers are two to a byte.
        if size > 2 * stored:
            raise ValueError(f"{item.name} has shape {list(item.dims)} in {stored} bytes")


def _onnx_rows(graph: Any, onnx: Any) -> Iterator[TensorRow]:
    """A row for each constant that is no scale or zero point of another one."""
    constants = {item.name: item for item in graph.initializer}
    parameters: dict[str, list[str]] = {}
    dequantizers: dict[str, Any] = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            parameters.setdefault(node.input[0], []).extend(n for n in node.input[1:] if n in constants)
            if len(node.input) > 2 and node.input[2] in constants:
                dequantizers[node.input[0]] = node
    attached = {name for names in parameters.values() for name in names}
    for name, item in constants.items():
        if name in attached:
            continue
        bits, array = _four_bits(item, onnx), _array(item, onnx)
        own = _raw_bytes(item, array.nbytes, bits)
        scales = [constants[n] for n in dict.fromkeys(parameters.get(name, []))]
        extra = sum(_raw_bytes(s, onnx.numpy_helper.to_array(s).nbytes, None) for s in scales)
        if name in dequantizers:
            node = dequantizers[name]
            array = _from_zero(array, _array(constants[node.input[2]], onnx), node)
        # A copy, since onnx hands out read-only memory and big-endian machines would differ.
        values = torch.from_numpy(array.copy())
        yield row(name, values, bits=bits, stored=own + extra, scaled=name in parameters)


def _four_bits(item: Any, onnx: Any) -> int | None:
    return 4 if item.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4) else None


def _array(item: Any, onnx: Any) -> NDArray[Any]:
    array: NDArray[Any] = onnx.numpy_helper.to_array(item)
    return array if _four_bits(item, onnx) is None else array.astype("int8")


def _from_zero(integers: NDArray[Any], zero_point: NDArray[Any], node: Any) -> NDArray[Any]:
    """Integers less their zero point, in their own type: they wrap around, so that no others become 0."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
    if (block or zero_point.size > 1) and not -integers.ndim <= axis < integers.ndim:
        raise ValueError(f"axis {axis} for shape {integers.shape}")
    if block:
        if zero_point.size * block > 2 * integers.size:
            raise ValueError(f"blocks of {block} for shape {integers.shape}")
        zero_point = zero_point.repeat(block, axis).take(range(integers.shape[axis]), axis)
    elif zero_point.size > 1:
        zero_point = np.expand_dims(zero_point, [k for k in range(integers.ndim) if k != axis % integers.ndim])
    if np.broadcast_shapes(integers.shape, zero_point.shape) != integers.shape:
        raise ValueError(f"zero points of shape {zero_point.shape} for shape {integers.shape}")
    return integers - zero_point


def _raw_bytes(item: Any, nbytes: int, bits: int | None) -> int:
    if item.raw_data:
        return len(item.raw_data)
    return nbytes if bits is None else math.ceil(nbytes * bits / 8)


def _values(values: Any) -> str:
    def shape(value: Any) -> str:
        sizes = (dim.dim_param or str(dim.dim_value) for dim in value.type.tensor_type.shape.dim)
        return f"{value.name} [{', '.join(sizes)}]"

    return "; ".join(map(shape, values))
