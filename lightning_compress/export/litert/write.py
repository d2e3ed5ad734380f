"""LiteRT ``.tflite`` files, run once. Needs the extra ``lightning-compress[litert]``.

The program is the one of ``export.pt2e``, with activations in int8; litert-torch lowers it to operators, and nothing is
calibrated again: scales, zero points and integers are the trained ones. Train with ``backend="litert"``: LiteRT's
integer kernels read and write integers, so every output needs a quantizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError, first_line, refuse_missing
from lightning_compress.export.fixed_batch import FixedBatchFile, write_checked
from lightning_compress.export.litert.flatbuffer import changed
from lightning_compress.export.litert.program import for_litert
from lightning_compress.export.litert.run import LiteRTModel
from lightning_compress.export.litert.settings import Layout, LiteRTSettings, Values
from lightning_compress.export.pt2e import quiet, to_pt2e
from lightning_compress.export.trace import trace
from lightning_compress.foundation.example_inputs import call_arguments, first_samples
from lightning_compress.foundation.nested import mapped


def to_litert(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    batch_size: int = 1,
    layout: Layout = "channels_first",
    values: Values = "float32",
) -> FixedBatchFile:
    """Write a model, quantized or float, as a ``.tflite`` file, and load and run it once.

    Args:
        model: The model; it is not changed.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments, with ``batch_size`` samples at
            least.
        path: Where to write; replaced atomically, once the file gave what the model gives.
        batch_size: Samples of one call, which are fixed in the file.
        layout: Whether inputs and outputs of four dimensions are ``[N, C, H, W]``, as in PyTorch, or ``[N, H, W, C]``,
            as cameras and most LiteRT code have them. Inside, kernels work on the latter.
        values: What the file takes and gives: float32, or int8 on the grid of the trained quantizer, for devices that
            compute no floats.

    Raises:
        CompressionError: LiteRT is not installed, activations have fewer than 8 bits, the model cannot be converted,
            an input or output has no quantizer where int8 is asked for, the file gives other outputs, or nothing can be
            written.
    """
    LiteRTSettings.of({"layout": layout, "values": values}, "to_litert")
    refuse_missing("to_litert", "litert_torch", "LiteRT", "litert")
    path = Path(path)
    args, kwargs = first_samples(call_arguments(example_inputs, model.forward), batch_size)
    args, kwargs = mapped((args, kwargs), lambda tensor: tensor.detach().cpu().contiguous())
    traced = trace(model, (*args, kwargs), dynamic_batch=False, field="to_litert")
    program = traced.program
    example, named = program.example_inputs
    with torch.no_grad():
        expected = program.module()(*example, **named)
    to_pt2e(program, signed=True)
    for_litert(program)
    data = _converted(program.module(), (*example, *named.values()), layout)
    if values == "float32" or layout == "channels_last":
        data = changed(data, floats=values == "float32", last=layout == "channels_last")
    return write_checked(
        path, data, lambda file: LiteRTModel(file, model.forward)(*args, **kwargs), expected, batch_size, "to_litert"
    )


class _ChannelsLast(nn.Module):
    """A network whose images have their channels last."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Tensor) -> Any:
        """Takes and gives ``[N, H, W, C]`` where the network has ``[N, C, H, W]``."""
        output = self.network(*(x.permute(0, 3, 1, 2) if x.ndim == 4 else x for x in args))
        return mapped(output, lambda y: y.permute(0, 2, 3, 1) if y.ndim == 4 else y)


def _converted(module: nn.Module, example: tuple[Tensor, ...], layout: Layout) -> bytes:
    if layout == "channels_last":
        module = _ChannelsLast(module)
        example = tuple(x.permute(0, 2, 3, 1).contiguous() if x.ndim == 4 else x for x in example)
    try:
        with quiet():
            import litert_torch

            litert_torch.config.show_progress = False
            from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
            from litert_torch.quantize.quant_config import QuantConfig

            # It quantizes nothing: it lets the converter take the quantizations in the graph for what they are.
            static = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
            quantized = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(static))
            return bytes(litert_torch.convert(module, example, quant_config=quantized).model_content())
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError, KeyError) as error:
        raise CompressionError(f"to_litert: litert-torch cannot convert the model: {first_line(error)}.") from error
