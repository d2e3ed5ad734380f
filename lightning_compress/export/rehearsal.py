"""Whether a model can be written to formats, found out before it is trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError, reason
from lightning_compress.export.file_format import GraphFormat
from lightning_compress.export.formats import FORMATS
from lightning_compress.export.trace import trace
from lightning_compress.foundation.example_inputs import call_arguments, first_samples
from lightning_compress.quantization import find

_RATES = ("train", "training", "dropout", "dropout_p")


def refusals(
    model: nn.Module, example_inputs: Any, formats: Iterable[str], *, dynamic_batch: bool = True
) -> dict[str, str]:
    """Trace a model as an export will after the training, and say which formats cannot be written.

    Quantizers that have observed nothing yet get a range, and places where a training batch has not shown them. A
    trace is what nearly all refusals come from; what a format's own converter refuses is not found. A model that draws
    random numbers in evaluation mode is refused, too: nothing could verify its files.

    Args:
        model: A copy of the model, which is used up.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments.
        formats: Names of formats; those that need no trace are passed over.
        dynamic_batch: Whether the batch is left free where that can be.

    Returns:
        Format → reason, for those that are refused.

    Example:
        >>> class ReadsValues(nn.Module):
        ...     def forward(self, x):
        ...         return x if float(x.sum()) > 0 else -x
        >>> sorted(refusals(ReadsValues(), torch.zeros(2, 4), ["onnx", "packed"]))
        ['onnx']
    """
    wanted = {item: kind for item in formats if isinstance(kind := FORMATS[item], GraphFormat)}
    found: dict[bool, str | None] = {}
    try:
        if wanted:
            _show_ranges(model.eval(), example_inputs)
    except Exception as error:  # Of any kind: the network is the user's.
        return dict.fromkeys(wanted, reason(error))
    for fixed in dict.fromkeys(kind.fixed_batch for kind in wanted.values()):
        try:
            inputs = _one_sample(example_inputs) if fixed else example_inputs
            program = trace(model, inputs, dynamic_batch=dynamic_batch and not fixed).program
            found[fixed] = _draws(program)
        except Exception as error:
            found[fixed] = reason(error)
    refused = {item: found[kind.fixed_batch] for item, kind in wanted.items()}
    for item, kind in wanted.items():
        try:
            kind.refuse(model)
        except CompressionError as error:
            refused[item] = str(error)
    return {item: why for item, why in refused.items() if why is not None}


def _draws(program: torch.export.ExportedProgram) -> str | None:
    """Why a program that draws random numbers is refused."""
    drawn = sorted(str(node.target) for node in program.graph.nodes if _is_random(node.target))
    if not drawn:
        return None
    return (
        f"The network draws random numbers in evaluation mode ({', '.join(dict.fromkeys(drawn))}), so that no file "
        f"gives the same outputs. Let it give a mean instead of a sample there, or name a module that draws none in "
        f"'module'."
    )


def _is_random(operator: Any) -> bool:
    """Whether an operator always draws random numbers, as one with a rate of dropout does not."""
    if torch.Tag.nondeterministic_seeded not in getattr(operator, "tags", ()):
        return False
    return not any(argument.name in _RATES for argument in operator._schema.arguments)


def _show_ranges(model: nn.Module, example_inputs: Any) -> None:
    quantization = find(model)
    if quantization is None:
        return
    if quantization.gains_by_recording:
        quantization.record(example_inputs)
    for quantizer in quantization.activations.values():
        quantizer.observed = True


def _one_sample(example_inputs: Any) -> Any:
    args, kwargs = first_samples(call_arguments(example_inputs), 1)
    return (*args, kwargs)
