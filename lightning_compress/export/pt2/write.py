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
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError, first_line
from lightning_compress.export.fixed_batch import run_in_batches
from lightning_compress.export.pt2.operators import trust
from lightning_compress.export.pt2.safe_archive import checked_archive, overlaps
from lightning_compress.export.pt2e import register, to_pt2e
from lightning_compress.export.signatures import input_names, named_outputs
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
        batch: Samples of one call where their number is fixed; ``None`` where it is free.
        left_out: Classes of what the forward returns beside tensors.
    """

    path: Path
    bytes: int
    batch: int | None = None
    left_out: tuple[str, ...] = ()


def to_torch_export(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
) -> TorchExportFile:
    """Write a model, quantized or float, as a ``.pt2`` file, and load and run it once.

    The file takes tensors alone, in the order of the forward's parameters, by position or by name as the example
    gives them; what the forward takes in a structure is taken out of it.

    Args:
        model: The model; it is not changed.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments.
        path: Where to write; replaced atomically, once the file gave what the program gives.
        dynamic_batch: Leave the batch free where that can be; the result says whether it is.
        dynamic_axes: Argument's name → dimension → a name for it, for other dimensions that stay free.

    Raises:
        CompressionError: The model cannot be exported, the file gives other outputs, or nothing can be written.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "model.pt2"
        >>> file = to_torch_export(nn.Linear(4, 2), torch.zeros(3, 4), target)
        >>> load_torch_export(target)(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """
    traced = trace(
        model, example_inputs, dynamic_batch=dynamic_batch, dynamic_axes=dynamic_axes, field="to_torch_export"
    )
    program = traced.program
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
    return TorchExportFile(path, path.stat().st_size, traced.batch, traced.left_out)


def load_torch_export(path: str | Path) -> nn.Module:
    """Load a ``.pt2`` file as a module for inference.

    The file is checked before PyTorch reads it: it may hold no pickles, nothing but identifiers for names and
    arithmetic for sizes, and call nothing but the operators of ``lightning_compress.export.pt2.operators``.
    ``torch.export.load`` does not check. The module runs PyTorch's kernels in this process; the commands ``verify`` and
    ``bench`` run them in one of their own.

    Raises:
        CompressionError: It is missing, cannot be read, or holds what may be code.
    """
    return _loaded(path)[1]


class TorchExportModel:
    """A ``.pt2`` file that is called like the module that it was written from, with any number of samples.

    Args:
        path: The file.
        forward: The module's forward; its parameters order the inputs.

    Raises:
        CompressionError: It is missing, cannot be read, or holds what may be code.
    """

    def __init__(self, path: str | Path, forward: Callable[..., Any]) -> None:
        from torch.fx.experimental.symbolic_shapes import is_concrete_int

        program, self._module = _loaded(path)
        self.path, self._forward = Path(path), forward
        positional, keywords = program.call_spec.in_spec.children()
        self._positional, self._keywords = positional.num_leaves, list(keywords.context)
        inputs = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
        shapes = [inputs[str(name)].shape for name in program.graph_signature.user_inputs]
        self._shapes = [[int(size) if is_concrete_int(size) else None for size in shape] for shape in shapes]

    def __call__(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        """Outputs of the file in order.

        Raises:
            CompressionError: The call lacks an input of the file, or the file refuses one or cannot be run.
        """
        given = list(input_names(self._forward, args, kwargs).values())
        if len(given) != len(self._shapes):
            raise CompressionError(
                f"{self.path}: the file takes {len(self._shapes)} tensors, and the module is called with {len(given)}."
            )
        try:
            return run_in_batches(self._run, given, self._shapes, str(self.path))
        except CompressionError:
            raise
        except Exception as error:  # What the kernels that a damaged graph calls raise has many names.
            raise CompressionError(f"{self.path}: cannot be run ({first_line(error)}).") from error

    def _run(self, given: list[torch.Tensor]) -> list[torch.Tensor]:
        keywords = dict(zip(self._keywords, given[self._positional :], strict=True))
        outputs = named_outputs(self._module(*given[: self._positional], **keywords)).values()
        return [output.cpu().to_dense() for output in outputs]


def _loaded(path: str | Path) -> tuple[torch.export.ExportedProgram, nn.Module]:
    register()
    data = checked_archive(path)
    logged, logger = _Logged(), logging.getLogger("torch.export")
    logger.addFilter(logged)
    try:
        # As a buffer: from a path it would insist on the file's suffix.
        program = torch.export.load(io.BytesIO(data))
        return program, program.module()
    except Exception as error:  # What damaged tables break in PyTorch's reader has many names.
        cause = first_line(logged.error or error)
        raise CompressionError(f"{path}: cannot be loaded as a torch.export file ({cause[:200]}).") from error
    finally:
        logger.removeFilter(logged)


class _Logged(logging.Filter):
    """Keeps the error that PyTorch's reader logs, with all that it was reading, instead of raising it."""

    error: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.exc_info:
            return True
        self.error = record.exc_info[1]
        return False


def _serialized(program: torch.export.ExportedProgram) -> bytes:
    """A program as the bytes of a file, without the inputs it was traced with and the lines of code it came from."""
    # They are the user's data, and would be in every copy of the file. There is no public way to leave them out.
    program._example_inputs = None
    # Sizes that inputs share, as Python: no reader should have to run code from a file.
    program._guards_code = []
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node"):
            node.meta.pop(key, None)
    for tensors in (program.state_dict, program.constants):
        for name, value in tensors.items():
            if isinstance(value, torch.Tensor) and overlaps(value.shape, value.stride()):
                tensors[name] = value.contiguous()
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _trust_own(program: torch.export.ExportedProgram) -> None:
    """Trust the operators outside of PyTorch that a program calls, as whoever wrote its model does."""
    for node in program.graph.nodes:
        space, _, name = str(node.target).partition(".")
        if node.op == "call_function" and space not in _PYTORCH and hasattr(torch.ops, space) and "." in name:
            trust(f"{space}.{name.partition('.')[0]}")
