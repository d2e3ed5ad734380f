"""One recorded forward: which operation made each tensor, which used it, and where modules hand it over.

Works on arbitrary eager code. Forward hooks name the tensors that pass a module's boundary; a
``TorchFunctionMode`` sees the functional operations between them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lightning_compress.foundation.nested import Key, tensors

_SITE_PACKAGES = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parent),
    str(Path(__file__).parents[1] / "quantization"),
)


_PROPERTIES = {"T": "t", "mT": "transpose", "data": "detach"}
"""Properties that are views of a tensor → the operation that makes the same."""


@dataclass(frozen=True)
class Boundary:
    """A place where a tensor enters or leaves a module.

    Attributes:
        module: Full name of the module.
        side: ``"input"`` or ``"output"``.
        path: Where the tensor stands in the arguments or the result (``()`` for the result itself).
    """

    module: str
    side: str
    path: tuple[Key, ...]


@dataclass(eq=False)
class Value:
    """One tensor at one moment (an in-place operation makes a new value).

    Attributes:
        producer: The operation that made it; ``None`` for what the recording did not see being made.
        parameter: Its full name when it is a parameter.
        consumers: The operations that use it, in order.
        outputs: Module results that it is, innermost first; only of modules inside which it was made.
        inputs: Module arguments that it is, outermost first.
        ndim: Number of dimensions.
        floating: Whether it holds floating-point numbers.
        serial: How many values were made before it.
    """

    producer: Op | None = None
    parameter: str | None = None
    consumers: list[Op] = field(default_factory=list)
    outputs: list[Boundary] = field(default_factory=list)
    inputs: list[Boundary] = field(default_factory=list)
    ndim: int = 0
    floating: bool = True
    serial: int = 0


@dataclass(eq=False)
class Op:
    """One operation: its normalized name, its values, and the modules that it ran in, innermost last."""

    name: str
    inputs: list[Value]
    outputs: list[Value]
    modules: tuple[str, ...]
    where: str
    arguments: tuple[Any, ...] = ()


@dataclass
class Tape:
    """Every operation of one forward, in order, and how often each module was called."""

    ops: list[Op] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)


@contextmanager
def recording(model: nn.Module) -> Iterator[Tape]:
    """Record everything that runs inside the ``with`` block.

    Args:
        model: Root of the module names on the tape.

    Yields:
        The tape, filled when the block ends.

    Example:
        >>> with recording(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) as tape:
        ...     pass
        >>> tape.ops
        []
    """
    recorder = _Recorder(model)
    handles = [handle for name, module in model.named_modules() for handle in recorder.watch(name, module)]
    try:
        with _eager(), recorder:
            yield recorder.tape
    finally:
        for handle in handles:
            handle.remove()


def _eager() -> AbstractContextManager[None]:
    """Let compiled modules run as they are written, since a graph shows neither hooks nor operations."""
    # Nothing is compiled in a process that has not loaded the compiler, and loading it takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def unrecorded() -> Iterator[None]:
    """Keep what runs inside the ``with`` block off every tape: it is no part of the model.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> with recording(net) as tape, unrecorded():
        ...     _ = torch.zeros(2) + 1
        >>> tape.ops
        []
    """
    before, _Recorder.paused = _Recorder.paused, True
    try:
        yield
    finally:
        _Recorder.paused = before


class _Recorder(TorchFunctionMode):
    paused = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.tape = Tape()
        self._stack: list[tuple[str, int]] = []
        self._values: dict[int, Value] = {}
        # Tensors must outlive the recording, or a new one could take over an id.
        self._alive: list[torch.Tensor] = []
        self._parameters = {id(parameter) for parameter in model.parameters()}
        for name, parameter in model.named_parameters():
            self._add(parameter, Value(parameter=name))

    def watch(self, name: str, module: nn.Module) -> Iterator[torch.utils.hooks.RemovableHandle]:
        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.tape.calls[name] = self.tape.calls.get(name, 0) + 1
            self._stack.append((name, len(self._alive)))
            for path, tensor in tensors((*args, kwargs) if kwargs else args):
                boundary = Boundary(name, "input", _argument_path(path, len(args)))
                self._value(tensor).inputs.append(boundary)

        def leave(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            _, entered = self._stack.pop()
            for path, tensor in tensors(output):
                # A module that hands its input on unchanged (Identity, an empty Sequential) made nothing: a
                # quantizer behind it would miss the tensor's other users.
                value = self._value(tensor)
                if value.serial >= entered:
                    value.outputs.append(Boundary(name, "output", path))

        yield module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
        yield module.register_forward_hook(leave)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _Recorder.paused:
            return result
        # A parameter that an optimizer writes inside the recording stays that parameter.
        made = [tensor for _, tensor in tensors(result) if id(tensor) not in self._parameters]
        if made and (name := _name(func)) is not None:
            used = [self._value(tensor) for _, tensor in tensors((*args, kwargs))]
            modules = tuple(name for name, _ in self._stack)
            op = Op(name, used, [], modules, _caller(), args)
            for value in dict.fromkeys(used):
                value.consumers.append(op)
            for tensor in made:
                op.outputs.append(self._add(tensor, Value(producer=op)))
            self.tape.ops.append(op)
        return result

    def _value(self, tensor: torch.Tensor) -> Value:
        if id(tensor) not in self._values:
            self._add(tensor, Value())
        return self._values[id(tensor)]

    def _add(self, tensor: torch.Tensor, value: Value) -> Value:
        value.ndim, value.floating, value.serial = tensor.ndim, tensor.is_floating_point(), len(self._alive)
        self._values[id(tensor)] = value
        self._alive.append(tensor)
        return value


def _argument_path(path: tuple[Key, ...], positional: int) -> tuple[Key, ...]:
    # Keyword arguments were appended behind the positional ones: name them by their keyword alone.
    return path[1:] if path[0] == positional else path


def _name(func: Any) -> str | None:
    """``torch.Tensor.add_``, ``__iadd__`` and ``torch.add`` are all ``add``; ``None`` for properties like ``grad``."""
    name: str = getattr(func, "__name__", type(func).__name__).strip("_")
    if name == "get":
        return _PROPERTIES.get(func.__self__.__name__)
    for prefix in ("i", "r"):
        if name.startswith(prefix) and name[1:] in {"add", "mul", "sub", "truediv", "matmul"}:
            return name[1:]
    return name


def _caller() -> str:
    """File and line of the user's code that called the operation."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_SITE_PACKAGES):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
