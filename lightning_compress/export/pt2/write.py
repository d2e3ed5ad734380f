"""``.pt2`` files of torch.export, in the quantized form of PyTorch's own PT2E flow.

Quantizers become operators of ``quantized_decomposed``, which come with PyTorch, so that a file loads without this
package, and Inductor's x86 backend finds the patterns that it fuses into int8 kernels::

    import torch, torch.ao.quantization.fx._decomposed   # registers the operators
    model = torch.export.load("model.pt2").module()
    torch._inductor.config.freezing = True
    with torch.no_grad():
        fast = torch.compile(model)

Train with ``backend="inductor"``, so that it fuses residual adds as well. On processors without VNNI those kernels,
like others for unsigned activations and signed weights, saturate: run the module itself there, without freezing.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError, first_line
from lightning_compress.export.pt2.operators import trust
from lightning_compress.export.pt2.safe_archive import refuse_code
from lightning_compress.export.pt2e import register, to_pt2e
from lightning_compress.export.trace import trace
from lightning_compress.foundation.atomic_write import replacing
from lightning_compress.foundation.output_difference import same_outputs

_PYTORCH = frozenset(
    {"aten", "prim", "prims", "inductor", "quantized", "quantized_decomposed", "mkldnn", "higher_order"}
)


@dataclass(frozen=True)
class TorchExportFile:
    """A written ``.pt2`` file.

    Attributes:
        path: Where it is.
        bytes: Its size.
    """

    path: Path
    bytes: int


def to_torch_export(
    model: nn.Module, example_inputs: Any, path: str | Path, *, dynamic_batch: bool = True
) -> TorchExportFile:
    """Write a model, quantized or float, as a ``.pt2`` file, and load and run it once.

    Args:
        model: The model; it is not changed.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments.
        path: Where to write; replaced atomically, once the file gave what the program gives.
        dynamic_batch: Leave the first dimension of every input free.

    Raises:
        CompressionError: The model cannot be exported, the file gives other outputs, or nothing can be written.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "model.pt2"
        >>> file = to_torch_export(nn.Linear(4, 2), torch.zeros(3, 4), target)
        >>> load_torch_export(target)(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """
    program = trace(model, example_inputs, dynamic_batch=dynamic_batch, field="to_torch_export")
    args, kwargs = program.example_inputs
    expected = program.module()(*args, **kwargs)
    to_pt2e(program)
    _trust_own(program)
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_bytes(_serialized(program))
        actual = load_torch_export(temporary)(*args, **kwargs)
        if not same_outputs(actual, expected):
            raise CompressionError(f"to_torch_export: {path} gives other outputs than the program it was written from.")
    return TorchExportFile(path, path.stat().st_size)


def load_torch_export(path: str | Path) -> nn.Module:
    """Load a ``.pt2`` file as a module for inference.

    The file is checked before PyTorch reads it: it may hold no pickles, nothing but arithmetic for sizes, and call
    nothing but the operators of ``lightning_compress.export.pt2.operators``. ``torch.export.load`` does not check.

    Raises:
        CompressionError: It is missing, cannot be read, or holds what may be code.
    """
    register()
    if not zipfile.is_zipfile(path):
        raise CompressionError(f"{path}: cannot be loaded as a torch.export file (it is missing, or no such archive).")
    try:
        # As a buffer: from a path it would insist on the file's suffix.
        data = Path(path).read_bytes()
        refuse_code(data, path)
        return torch.export.load(io.BytesIO(data)).module()
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError, zipfile.BadZipFile) as error:
        raise CompressionError(f"{path}: cannot be loaded as a torch.export file ({first_line(error)}).") from error


def _serialized(program: torch.export.ExportedProgram) -> bytes:
    """A program as the bytes of a file, without the inputs it was traced with and the lines of code it came from."""
    # They are the user's data, and would be in every copy of the file. There is no public way to leave them out.
    program._example_inputs = None
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _trust_own(program: torch.export.ExportedProgram) -> None:
    """Trust the operators outside of PyTorch that a program calls, as whoever wrote its model does."""
    for node in program.graph.nodes:
        space, _, name = str(node.target).partition(".")
        if node.op == "call_function" and space not in _PYTORCH and hasattr(torch.ops, space) and "." in name:
            trust(f"{space}.{name.partition('.')[0]}")
