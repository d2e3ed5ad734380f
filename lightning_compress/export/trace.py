"""The exported program of a deployable copy, from which every graph format is written."""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.modules import transformer
from torch.nn.utils.rnn import PackedSequence

from lightning_compress.errors import CompressionError, closest, first_line
from lightning_compress.export.deployable import deployable
from lightning_compress.export.signatures import input_names, named_outputs, take_tensors
from lightning_compress.foundation.example_inputs import batch_size, call_arguments
from lightning_compress.foundation.nested import mapped

Shapes = dict[str, dict[int, Any] | None]
"""Input's name → its free dimensions, as torch.export wants them."""


@dataclass(frozen=True)
class Traced:
    """A model as a program.

    Attributes:
        program: Takes tensors alone, in the order of ``input_names``, and gives tensors alone.
        input_names: Names of the tensors by the parameters of the forward.
        output_names: Names of the results by the keys or fields that they stand under.
        batch: Samples of one call where their number is fixed; ``None`` where it is free.
        left_out: Classes of what stood among the results and is no tensor.
    """

    program: torch.export.ExportedProgram
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    batch: int | None
    left_out: tuple[str, ...] = ()


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    dynamic_batch: bool = True,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    field: str = "trace",
) -> Traced:
    """Trace the deployable copy of a model, in which quantizers are the operators of ``export.quantize_ops``.

    The batch is left free if that can be: first as one size of all inputs that share it, then with sizes that
    torch.export relates to one another, as graphs of nodes and edges need it. Where Python reads the batch size, it is
    fixed to that of the example.

    Args:
        model: The model, quantized or float; it is not changed.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments. They may hold dataclasses, named
            tuples, dicts and lists of tensors, and anything that is no tensor, which becomes part of the program.
        dynamic_batch: Leave the batch free if that can be.
        dynamic_axes: Input's name → other dimensions that stay free, with their names.
        field: Name of the caller, for messages.

    Raises:
        CompressionError: The model cannot be traced.
    """
    args, kwargs = call_arguments(example_inputs, model.forward)
    args, kwargs = mapped((args, kwargs), lambda tensor: tensor.detach().cpu())
    prepared = deployable(model, (*args, kwargs))
    for parameter in prepared.parameters():
        parameter.requires_grad_(False)
    names = tuple(input_names(model.forward, args, kwargs))
    results: list[Any] = []
    prepared.register_forward_hook(lambda _module, _args, output: results.append(output))
    given = take_tensors(prepared, args, kwargs)
    refused: list[Exception] = []
    for example, shapes in _attempts(given, dynamic_axes or {}, dynamic_batch, field):
        try:
            # torch.onnx.export alone would fall back to modes that freeze data-dependent values without a word.
            with quiet(), _masks_unread(), _distributions_unread():
                program = torch.export.export(
                    prepared, tuple(example[0].values()), example[1], dynamic_shapes=shapes, strict=False
                )
        except Exception as error:  # any network's own
            refused.append(error)
            continue
        program = _without_einsum(program)
        batch = batch_size(list({**example[0], **example[1]}.values()))
        free = _is_free(program)
        if dynamic_batch and not free and shapes is not None:
            # It was fixed to the size that the example was repeated to.
            continue
        outputs = tuple(named_outputs(results[-1], names))
        return Traced(program, names, outputs, None if free else batch, _left_out(results[-1]))
    raise CompressionError(
        f"{field}: torch.export cannot trace {type(model).__name__}: {first_line(refused[-1])}. Values that depend on "
        f"data cannot steer Python code in an exported model.{_remedy(refused[-1])}"
    ) from refused[-1]


def _remedy(error: BaseException) -> str:
    """What to write instead of a function that cannot be traced."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    if any(isinstance(value, PackedSequence) for frame in frames for value in frame.f_locals.values()):
        return (
            " pack_padded_sequence reads the lengths as Python numbers: give the recurrent layer the padded sequence, "
            "and mask what it returns behind each length."
        )
    return ""


Given = tuple[dict[str, Tensor], dict[str, Tensor]]


def _attempts(
    given: Given, axes: Mapping[str, Mapping[int, str]], dynamic_batch: bool, field: str
) -> Iterator[tuple[Given, Shapes | None]]:
    """Inputs and free dimensions to try, from most to least free."""
    every = {**given[0], **given[1]}
    more = _axes(every, axes, field)
    if dynamic_batch:
        size = batch_size(list(every.values()))
        carrying = [name for name, t in every.items() if t.ndim and (size is None or t.shape[0] == size)]
        example = given
        if size == 1:
            # torch.export takes a dimension of size 1 for a constant.
            example = mapped(given, lambda t: torch.cat([t, t]) if t.ndim and t.shape[0] == 1 else t)
        if size is not None:
            yield example, _shapes(every, carrying, torch.export.Dim("batch", min=1), more)
        yield example, _shapes(every, carrying, torch.export.Dim.AUTO, more)
    yield given, _shapes(every, [], None, more) if more else None


def _shapes(names: Mapping[str, Any], carrying: list[str], batch: Any, axes: Mapping[str, dict[int, Any]]) -> Shapes:
    first = {name: {0: batch} for name in carrying}
    return {name: {**first.get(name, {}), **axes.get(name, {})} or None for name in names}


def _axes(given: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, str]], field: str) -> dict[str, dict[int, Any]]:
    """Dimensions whose bounds torch.export finds by itself."""
    for name, free in axes.items():
        if name not in given:
            raise CompressionError.field(
                f"{field}.dynamic_axes", expected="names of tensors in the call", got=name, fix=closest(name, given)
            )
        if any(not isinstance(axis, int) or not 0 <= axis < given[name].ndim for axis in free):
            raise CompressionError.field(
                f"{field}.dynamic_axes.{name}", expected=f"dimensions from 0 to {given[name].ndim - 1}", got=list(free)
            )
    return {name: dict.fromkeys(free, torch.export.Dim.AUTO) for name, free in axes.items()}


def _is_free(program: torch.export.ExportedProgram) -> bool:
    """Whether the first size of any input is free."""
    # Not loaded before it is needed, as that takes a second.
    from torch.fx.experimental.symbolic_shapes import is_concrete_int

    inputs = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]
    return any(isinstance(v, Tensor) and v.ndim and not is_concrete_int(v.shape[0]) for v in values)


def _left_out(output: Any) -> tuple[str, ...]:
    """Classes of objects among a forward's results; plain numbers and the like are not worth a word."""
    found: list[str] = []

    def look(tree: Any) -> None:
        if isinstance(tree, Mapping):
            tree = list(tree.values())
        if isinstance(tree, tuple | list):
            for item in tree:
                look(item)
        elif not isinstance(tree, Tensor | str | bytes | int | float | complex | type(None)):
            found.append(type(tree).__name__)

    look(output)
    return tuple(dict.fromkeys(found))


def _without_einsum(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Einsums as the matrix products that they are, for which runtimes have integer kernels."""
    einsum = torch.ops.aten.einsum.default
    if not any(node.target == einsum for node in program.graph.nodes):
        return program
    return program.run_decompositions({einsum: torch.export.default_decompositions()[einsum]})


@contextmanager
def _masks_unread() -> Iterator[None]:
    """A transformer reads its mask to find out whether it is causal, which no trace can; it applies it either way."""
    detect = transformer._detect_is_causal_mask
    transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect


@contextmanager
def _distributions_unread() -> Iterator[None]:
    """``torch.distributions`` read their parameters and samples to check them, which no trace can."""
    checks, check = Distribution._validate_args, Distribution._validate_sample
    Distribution.set_default_validate_args(False)
    Distribution._validate_sample = lambda self, value: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Distribution.set_default_validate_args(checks)
        Distribution._validate_sample = check  # type: ignore[method-assign]


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter warns about its own internals; nothing of that is the user's."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
