"""Where a written file begins to differ from the model: activations at every quantizer, in execution order."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.export.litert.run import LiteRTModel
from lightning_compress.export.onnx.session import OnnxModel
from lightning_compress.export.packed.save_load import load_packed
from lightning_compress.foundation.boundary import watch
from lightning_compress.foundation.nested import tensors
from lightning_compress.foundation.output_difference import differences, sizes
from lightning_compress.quantization import find, strip

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


@dataclass(frozen=True)
class _Seen:
    """An activation as one side has it."""

    name: str
    value: Tensor
    grid: tuple[float, int]
    layers: tuple[str, ...] = ()


def can_trace(path: str | os.PathLike[str]) -> bool:
    """Whether activations inside a file of this format can be looked at."""
    return Path(path).suffix in (".onnx", ".packed", ".tflite")


def site_errors(
    path: str | os.PathLike[str],
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    threads: int = 1,
) -> list[SiteError]:
    """Compare a file's activations with the model's at every activation quantizer.

    A copy of the ONNX graph in memory gets the dequantized activations as further outputs; ONNX Runtime still takes
    its integer kernels. LiteRT's reference kernels keep all activations. A packed file is loaded into a copy of the
    model.

    Args:
        path: An ONNX, LiteRT or packed file.
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
    expected, outputs = _of_model(model, args, kwargs)
    if path.suffix == ".onnx":
        found, last, given = _of_onnx(path, model, args, kwargs, threads)
    elif path.suffix == ".tflite":
        values, given = LiteRTModel(path, model.forward, kernels="reference").activations(*args, **kwargs)
        found, last = [_Seen("", value, grid) for value, grid in values], ()
    else:
        loaded = load_packed(path, strip(copy.deepcopy(model))).cpu().eval()
        found, given = _of_model(loaded, args, kwargs)
        last = ()
    errors = []
    for theirs, ours in _pairs(expected, found):
        if theirs.value.numel() != ours.value.numel() or not theirs.value.numel():
            continue
        difference = _nearest(ours.value, theirs.value, channels_last=path.suffix == ".tflite") / theirs.grid[0]
        layers = ours.layers or (theirs.name.partition(":")[0],)
        errors.append(SiteError(theirs.name, layers, float(difference.mean()), float(difference.max())))
    pairs = [(ours, theirs) for ours, theirs in zip(given, outputs, strict=False) if ours.shape == theirs.shape]
    if pairs and pairs[0][0].numel():
        difference = differences(*pairs[0]) / (float(sizes(pairs[0][1]).max()) or 1.0)
        errors.append(SiteError("output", last, float(difference.mean()), float(difference.max())))
    return errors


def _nearest(ours: Tensor, theirs: Tensor, *, channels_last: bool) -> Tensor:
    """Absolute differences; of a file whose kernels may have channels last, in the order in which they are less."""
    orders = [ours, ours.movedim(-1, 1)] if channels_last and ours.ndim > 2 else [ours]
    found = (differences(order.reshape(theirs.shape), theirs) for order in orders)
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


def _of_model(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[_Seen], list[Tensor]]:
    seen: list[_Seen] = []
    with _watched(model, seen), torch.no_grad():
        outputs = model(*copy.deepcopy(tuple(args)), **copy.deepcopy(kwargs))
    return seen, [tensor for _, tensor in tensors(outputs)]


@contextmanager
def _watched(model: nn.Module, seen: list[_Seen]) -> Iterator[None]:
    """Note what leaves every activation quantizer; hooks added now come after the quantizers' own."""
    quantization = find(model)
    placement = None if quantization is None else quantization.placement
    handles = []
    if quantization is not None and placement is not None and quantization.enabled:
        modules = dict(quantization.root.named_modules())
        for site in placement.sites:
            quantizer = quantization.activations[site.name]
            grid = (float(quantizer.scale), int(quantizer.zero_point))
            for boundary in site.boundaries:
                note = _Note(site.name, grid, seen)
                # Inside of attention one function stands for the weights: this one takes the quantizer's place there.
                step = note if boundary.side != "weights" else _Both(quantizer, note)
                handles.append(watch(modules[boundary.module], boundary, [boundary.path], step))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Note:
    name: str
    grid: tuple[float, int]
    seen: list[_Seen]

    def __call__(self, value: Tensor) -> Tensor:
        if value.is_floating_point():
            # Operations after the quantizer may work in place.
            self.seen.append(_Seen(self.name, value.detach().clone(), self.grid))
        return value


@dataclass(frozen=True)
class _Both:
    first: Callable[[Tensor], Tensor]
    then: Callable[[Tensor], Tensor]

    def __call__(self, value: Tensor) -> Tensor:
        return self.then(self.first(value))


def _of_onnx(
    path: Path, model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], threads: int
) -> tuple[list[_Seen], tuple[str, ...], list[Tensor]]:
    """Activations of an ONNX file, the layers behind the last of them, and its outputs."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph_model = onnx.load(path)
    except (DecodeError, OSError) as error:
        raise CompressionError(f"{path}: cannot be read as ONNX ({error}).") from error
    graph = graph_model.graph
    constants = {item.name: item for item in graph.initializer}
    places = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] not in constants]
    outputs = [item.name for item in graph.output]
    added = [node.output[0] for node in places if node.output[0] not in outputs]
    graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in added)
    session = OnnxModel(path, model.forward, threads=threads, content=graph_model.SerializeToString())
    values = dict(zip((*outputs, *added), session(*args, **kwargs), strict=True))
    producers = {name: node for node in graph.node for name in node.output}
    ends = {node.output[0] for node in places}
    names = {name for name, _ in model.named_modules()}
    seen = []
    for node in places:
        scale, zero = (constants.get(name) for name in (*node.input[1:], "", "")[:2])
        grid = (float(_number(scale, 1.0)), int(_number(zero, 0.0)))
        layers = _layers_behind(node, producers, ends, constants, names)
        seen.append(_Seen(node.output[0], values[node.output[0]], grid, layers))
    last = producers.get(outputs[0])
    behind = () if last is None or outputs[0] in ends else _layers_behind(last, producers, ends, constants, names)
    return seen, behind, [values[name] for name in outputs]


def _number(constant: Any, default: float) -> float:
    import onnx

    return default if constant is None else float(onnx.numpy_helper.to_array(constant).reshape(-1)[0])


def _layers_behind(
    node: Any, producers: Mapping[str, Any], ends: set[str], constants: Mapping[str, Any], modules: set[str]
) -> tuple[str, ...]:
    """Modules whose constants a node's result is made from, back to the dequantized activations before it."""
    found: dict[str, None] = {}
    waiting, known = list(node.input), set()
    while waiting:
        name = waiting.pop()
        if name in known or name in ends:
            continue
        known.add(name)
        if name in constants:
            owner = name.rpartition(".")[0]
            if owner and owner in modules:
                found[owner] = None
        elif name in producers:
            waiting.extend(producers[name].input)
    return tuple(sorted(found))


def _pairs(expected: list[_Seen], found: list[_Seen]) -> Iterator[tuple[_Seen, _Seen]]:
    """The same places on both sides, in order."""
    if len(expected) == len(found):
        yield from zip(expected, found, strict=True)
        return
    # An exporter leaves out what nothing reads: grids tell which places are the same.
    theirs, ours = ([f"{item.grid[0]:.6g} {item.grid[1]}" for item in side] for side in (expected, found))
    for block in SequenceMatcher(None, theirs, ours, autojunk=False).get_matching_blocks():
        yield from zip(expected[block.a : block.a + block.size], found[block.b : block.b + block.size], strict=True)
