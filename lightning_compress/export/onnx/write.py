"""ONNX with QuantizeLinear/DequantizeLinear, the form that ONNX Runtime turns into integer kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError, first_line
from lightning_compress.export.onnx.axes import name_axes, refuse_fixed
from lightning_compress.export.onnx.int4_weights import store_int4
from lightning_compress.export.onnx.optimize import optimize
from lightning_compress.export.onnx.rewrite import clean
from lightning_compress.export.onnx.weight_signs import EXACT, saturates, store_unsigned
from lightning_compress.export.trace import quiet, trace
from lightning_compress.foundation.atomic_write import replacing
from lightning_compress.foundation.example_inputs import call_arguments
from lightning_compress.quantization.attach import find

OPSET = 21


@dataclass(frozen=True)
class OnnxFile:
    """A written ONNX file.

    Attributes:
        path: Where it is.
        bytes: Its size.
        input_names: Names of the graph's inputs.
        output_names: Names of the graph's outputs.
        batch: Samples of one call where their number is fixed; ``None`` where it is free.
        int4: Names of the weights that are stored as INT4.
        left_out: Classes of what the forward returns beside tensors.
    """

    path: Path
    bytes: int
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    batch: int | None = None
    int4: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def to_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_batch: bool = True,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    int4: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> OnnxFile:
    """Write a model, quantized or float, as one ONNX file.

    Args:
        model: The model; it is not changed.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments.
        path: Where to write; replaced atomically.
        input_names: Names of the graph's inputs; the forward's argument names by default.
        output_names: Names of the graph's outputs; by default the keys or fields under which the forward returns them.
        dynamic_batch: Leave the batch free where that can be; the result says whether it is. Where Python reads the
            batch size, it is that of the example.
        dynamic_axes: Argument's name → dimension → name in the file, for other dimensions that stay free, such as
            ``{"tokens": {1: "time"}}``.
        int4: Store every weight of at most 4 bits as INT4, also where ONNX Runtime then computes in float: half the
            bytes, without integer kernels. Where activations are float, such weights are INT4 anyway.
        metadata: Written into the file's ``metadata_props``.

    Returns:
        The file's path, size and names.

    Raises:
        CompressionError: The model cannot be exported, or nothing can be written at ``path``.
    """
    name = type(model).__name__
    axes = dynamic_axes or {}
    refuse_projections(model)
    traced = trace(model, example_inputs, dynamic_batch=dynamic_batch, dynamic_axes=axes, field="to_onnx")
    inputs = _names("input_names", input_names, traced.input_names)
    program = _export(traced.program, inputs, _names("output_names", output_names, traced.output_names), name)
    graph = program.model
    optimize(graph)
    clean(graph)
    narrow = store_int4(graph.graph, everywhere=int4)
    quantization = find(model)
    if quantization is None or quantization.settings.stores_unsigned:
        store_unsigned(graph.graph)
    if saturates(graph.graph):
        graph.metadata_props[EXACT] = "1"
    doubtful = name_axes(graph.graph, traced.input_names, axes)
    if metadata:
        graph.metadata_props.update({str(k): str(v) for k, v in metadata.items()})
    path = Path(path)
    with replacing(path) as temporary:
        program.save(str(temporary))
        refuse_fixed(temporary, call_arguments(example_inputs, model.forward), model, doubtful)
    return OnnxFile(
        path=path,
        bytes=path.stat().st_size,
        input_names=tuple(str(value.name) for value in graph.graph.inputs),
        output_names=tuple(str(value.name) for value in graph.graph.outputs),
        batch=traced.batch,
        int4=tuple(narrow),
        left_out=traced.left_out,
    )


def refuse_projections(model: nn.Module) -> None:
    """Refuse what ONNX has no operator for, which tracing does not find.

    Raises:
        CompressionError: The model has an LSTM with projections.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.LSTM) and module.proj_size:
            raise CompressionError(
                f"to_onnx: {name or 'the model'} is an LSTM with proj_size={module.proj_size}, and ONNX's LSTM has no "
                f"projections. Put a Linear behind an LSTM without them, or write 'torch_export' or 'packed'."
            )


def _names(setting: str, given: Sequence[str] | None, own: Sequence[str]) -> Sequence[str]:
    if given is None:
        return own
    if len(given) != len(own) or isinstance(given, str) or len(set(given)) != len(given):
        raise CompressionError.field(
            f"to_onnx.{setting}", expected=f"{len(own)} different names, for {', '.join(own)}", got=given
        )
    return list(given)


def _export(
    traced: torch.export.ExportedProgram, input_names: Sequence[str], output_names: Sequence[str], name: str
) -> torch.onnx.ONNXProgram:
    try:
        with quiet():
            exported = torch.onnx.export(
                traced,
                dynamo=True,
                opset_version=OPSET,
                input_names=input_names,
                output_names=output_names,
                custom_translation_table=_translations(),
                optimize=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise CompressionError(
            f"to_onnx: torch.onnx cannot write {name}: {first_line(error.__cause__ or error)}."
        ) from error
    if exported is None:
        raise CompressionError(f"to_onnx: torch.onnx returned nothing for {name}.")
    return exported


def _translations() -> dict[Any, Any]:
    """ONNX for our two operators."""
    from onnxscript import opset21 as op
    from onnxscript.onnx_types import FLOAT, INT8, INT32

    def to_quantize_linear(x: FLOAT, scale: float, zero_point: int, qmin: int, qmax: int) -> FLOAT:
        unsigned = qmin >= 0
        dtype = 2 if unsigned else 3
        step = op.Constant(value_float=scale)
        zero = op.Cast(op.Constant(value_int=zero_point), to=dtype)
        integers = op.QuantizeLinear(x, step, zero)
        full = (0, 255) if unsigned else (-128, 127)
        if (qmin, qmax) != full:
            # QuantizeLinear saturates at 8 bits; a narrower grid is clipped among the integers.
            low = op.Cast(op.Constant(value_int=qmin), to=dtype)
            high = op.Cast(op.Constant(value_int=qmax), to=dtype)
            integers = op.Clip(integers, low, high)
        return op.DequantizeLinear(integers, step, zero)

    def to_dequantize_linear(
        integers: INT8 | INT32, scale: FLOAT, zero_point: INT8 | INT32 | None, axis: int, block: int
    ) -> FLOAT:
        return op.DequantizeLinear(integers, scale, zero_point, axis=axis, block_size=block)

    def to_mean(x: FLOAT, dim: Sequence[int] | None = None, keepdim: bool = False, dtype: int = -1) -> FLOAT:
        rank = len(x.shape)
        if dim is None or not dim:
            return op.ReduceMean(x, keepdims=keepdim, noop_with_empty_axes=0)
        dims = sorted(d % rank for d in dim)
        axes = op.Constant(value_ints=dims)
        if rank > 2 and dims == list(range(2, rank)):
            # ONNX Runtime has an integer kernel for GlobalAveragePool and none for ReduceMean.
            pooled = op.GlobalAveragePool(x)
            return pooled if keepdim else op.Squeeze(pooled, axes)
        return op.ReduceMean(x, axes, keepdims=keepdim)

    def to_squeeze(x: FLOAT, dim: int) -> FLOAT:
        # PyTorch leaves a dimension of another size than 1 as it is, and ONNX refuses it.
        if not x.shape or x.shape[dim] != 1:
            return op.Identity(x)
        return op.Squeeze(x, op.Constant(value_ints=[dim]))

    ops = torch.ops.lightning_compress
    return {
        ops.quantize_dequantize.default: to_quantize_linear,
        ops.dequantize.default: to_dequantize_linear,
        torch.ops.aten.mean.dim: to_mean,
        torch.ops.aten.squeeze.dim: to_squeeze,
    }
