"""Operators with kernels of their own for accelerators: ``torch.library`` operators over Triton kernels.

An operator has two implementations: one that launches its kernels, and one for fake tensors that says which tensors
come out. Triton is imported at the first launch, so that a machine without an accelerator never loads it.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor

_library = torch.library.Library("lightning_compress", "FRAGMENT")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def served(x: torch.Tensor) -> bool:
    """Whether the operators serve a tensor: on a CUDA or ROCm device with Triton, or a fake tensor on any accelerator.

    Not while ``torch.compile`` or ``torch.export`` traces: they fuse plain operations themselves. Nor inside of
    ``torch.func``, whose transforms take plain operations apart.

    Args:
        x: A tensor of any device, dtype and shape.
    """
    if x.device.type in ("cpu", "meta") or x.dtype not in _DTYPES or x.layout is not torch.strided or not x.numel():
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    if isinstance(x, FakeTensor):
        return True
    return x.device.type == "cuda" and type(x) in (torch.Tensor, torch.nn.Parameter) and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def operator(schema: str, launch: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define ``torch.ops.lightning_compress.<name>``.

    Args:
        schema: Name, arguments and results, as in ``torch.library.define``.
        launch: Launches the kernels.
        fake: Makes results of the same shapes, dtypes and strides, from tensors without values.

    Returns:
        The operator.
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, on_device_of_arguments(launch), "CompositeExplicitAutograd")
    _library.impl(name, fake, "Meta")
    return getattr(torch.ops.lightning_compress, name).default


def on_device_of_arguments(launch: Callable[..., Any]) -> Callable[..., Any]:
    """A launch on the device of its first argument: Triton launches on the current one, whatever the tensors' is.

    Args:
        launch: Its first argument is a tensor or a list of them.
    """

    @functools.wraps(launch)
    def launched(first: Any, *rest: Any) -> Any:
        device = (first if isinstance(first, torch.Tensor) else first[0]).device
        if device.type != "cuda":
            return launch(first, *rest)
        with torch.cuda.device(device):
            return launch(first, *rest)

    return launched


def dense(x: torch.Tensor) -> torch.Tensor:
    """The tensor itself if it fills its memory without gaps, in whatever order of dimensions, else a copy."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return x.contiguous()
            expected *= size
    return x


class Table:
    """A table of integers on a device, sent there again only when its contents change, without waiting for it.

    Addresses of weights and masks change rarely, so that an ordinary step sends nothing.
    """

    def __init__(self) -> None:
        self._sent: dict[tuple[Any, ...], torch.Tensor] = {}

    def on(self, device: torch.device, key: tuple[Any, ...], make: Callable[[], Any]) -> torch.Tensor:
        """The table on a device: int64.

        Args:
            device: Where it is read.
            key: What its contents follow from.
            make: Computes them: anything that NumPy takes.
        """
        key = (device, *key)
        if key not in self._sent:
            if len(self._sent) >= 16:
                self._sent.clear()
            table = torch.as_tensor(np.asarray(make(), dtype=np.int64))
            if device.type == "cuda":
                table = table.pin_memory().to(device, non_blocking=True)
            self._sent[key] = table
        return self._sent[key]
