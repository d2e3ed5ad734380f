"""``.pt2`` packages of AOTInductor: the model compiled to a library for this kind of processor. Needs a C++ compiler.

Where integers are exact, weights are frozen into the library, and Inductor fuses the patterns of PT2E into oneDNN's
8-bit kernels: train with ``backend="inductor"``. Otherwise the same graph is computed in float. A package is machine
code: load only what you trust.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError, first_line
from lightning_compress.export.pt2e import register, to_pt2e
from lightning_compress.export.trace import quiet, trace
from lightning_compress.foundation.atomic_write import replacing
from lightning_compress.foundation.compile_cpp import compiler
from lightning_compress.foundation.output_difference import same_outputs
from lightning_compress.foundation.processor import has_vnni


@dataclass(frozen=True)
class AotInductorFile:
    """A written package.

    Attributes:
        path: Where it is.
        bytes: Its size, machine code included.
        integers: Whether Inductor was let to fuse 8-bit kernels.
    """

    path: Path
    bytes: int
    integers: bool


def to_aot_inductor(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    integers: bool | None = None,
) -> AotInductorFile:
    """Compile a model, quantized or float, and load and run the package once.

    Args:
        model: The model; it is not changed.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments.
        path: A file that ends in ``.pt2``; replaced atomically, once the package gave what the model gives.
        dynamic_batch: Leave the first dimension of every input free.
        integers: Whether to let Inductor fuse 8-bit kernels. ``None``: where the processor has VNNI; elsewhere they
            saturate.

    Raises:
        CompressionError: There is no C++ compiler, the model cannot be compiled, the package gives other outputs, or
            nothing can be written.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise CompressionError.field("to_aot_inductor.path", expected="a file that ends in .pt2", got=str(path))
    compiler()
    program = trace(model, example_inputs, dynamic_batch=dynamic_batch, field="to_aot_inductor").program
    args, kwargs = program.example_inputs
    expected = program.module()(*args, **kwargs)
    if integers is None:
        integers = has_vnni() is not False
    to_pt2e(program)
    with replacing(path) as temporary:
        _compile(program, temporary, integers)
        actual = load_aot_inductor(temporary)(*args, **kwargs)
        if not same_outputs(actual, expected, least=1e-6):
            raise CompressionError(
                f"to_aot_inductor: {path} gives other outputs than the model. Where 8-bit kernels saturate, "
                f"integers=False computes in float."
            )
    return AotInductorFile(path, path.stat().st_size, integers)


def load_aot_inductor(path: str | Path) -> Callable[..., Any]:
    """Load a package as a function of the model's arguments. It runs the machine code in the file.

    Raises:
        CompressionError: It is missing or cannot be loaded.
    """
    register()
    try:
        # As a buffer: from a path it would insist on the file's suffix.
        with Path(path).open("rb") as file:
            return torch._inductor.aoti_load_package(file)
    except (OSError, RuntimeError) as error:
        raise CompressionError(f"{path}: cannot be loaded as an AOTInductor package ({first_line(error)}).") from error


def _compile(program: torch.export.ExportedProgram, path: Path, integers: bool) -> None:
    try:
        with quiet(), torch.no_grad(), path.open("wb") as file:
            torch._inductor.aoti_compile_and_package(
                program, package_path=file, inductor_configs={"freezing": integers}
            )
    except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
        raise CompressionError(f"to_aot_inductor: Inductor cannot compile the model: {first_line(error)}.") from error
