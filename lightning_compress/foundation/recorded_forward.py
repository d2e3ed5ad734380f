"""One recorded forward: which operation made each tensor, which used it, and where modules hand it over.

Works on arbitrary eager code. Forward hooks name the tensors that pass a module's boundary; a
``TorchFunctionMode`` sees the functional operations between them.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lightning_compress.foundation.boundary import Boundary
from lightning_compress.foundation.function_calls import function_name, known_functions
from lightning_compress.foundation.nested import Key, tensors

_SITE_PACKAGES = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).parent),
    str(Path(__file__).parents[1] / "quantization"),
)


_PROPERTIES = {"T": "t", "mT": "transpose", "data": "detach"}
"""Properties that are views of a tensor → the operation that makes the same."""


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
    """One operation.

    Attributes:
        name: Its normalized name.
        inputs: The tensors among its arguments.
        outputs: The tensors in its result.
        modules: The modules that it ran in, innermost last.
        where: File and line of the call.
        arguments: Positional arguments.
        keywords: Keyword arguments.
        paths: Where each input stands in the arguments, a name first for keyword arguments.
        results: Where each output stands in the result.
        call: Which call of this function it is in its module's own forward; ``None`` where it cannot be hooked.
        dropped: Whether its caller drops the result, as after a function that works in place.
    """

    name: str
    inputs: list[Value]
    outputs: list[Value]
    modules: tuple[str, ...]
    where: str
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)
    paths: tuple[tuple[Key, ...], ...] = ()
    results: tuple[tuple[Key, ...], ...] = ()
    call: int | None = None
    dropped: bool = False


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
        with uncompiled(), recorder:
            yield recorder.tape
    finally:
        for handle in handles:
            handle.remove()


def uncompiled() -> AbstractContextManager[None]:
    """Let compiled modules run as they are written, since a graph shows neither hooks nor operations.

    Example:
        >>> with uncompiled():
        ...     _ = nn.Linear(2, 2)(torch.zeros(1, 2))
    """
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


@dataclass
class _Frame:
    """One forward that is running: its module, the values made before it, and its calls by function."""

    module: str
    entered: int
    counts: dict[str, int] = field(default_factory=dict)


class _Recorder(TorchFunctionMode):
    paused = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.tape = Tape()
        self._stack: list[_Frame] = []
        self._values: dict[int, Value] = {}
        # Tensors must outlive the recording, or a new one could take over an id.
        self._alive: list[torch.Tensor] = []
        self._parameters = {id(parameter) for parameter in model.parameters()}
        for name, parameter in model.named_parameters():
            self._add(parameter, Value(parameter=name))

    def watch(self, name: str, module: nn.Module) -> Iterator[torch.utils.hooks.RemovableHandle]:
        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.tape.calls[name] = self.tape.calls.get(name, 0) + 1
            self._stack.append(_Frame(name, len(self._alive)))
            for path, tensor in tensors((*args, kwargs) if kwargs else args):
                boundary = Boundary(name, "input", _argument_path(path, len(args)))
                self._value(tensor).inputs.append(boundary)

        def begin(_module: nn.Module, _args: tuple[Any, ...]) -> None:
            # Other hooks before the forward are no part of it.
            self._stack[-1].counts.clear()

        def leave(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            entered = self._stack.pop().entered
            for path, tensor in tensors(output):
                # A module that hands its input on unchanged (Identity, an empty Sequential) made nothing: a
                # quantizer behind it would miss the tensor's other users.
                value = self._value(tensor)
                if value.serial >= entered:
                    value.outputs.append(Boundary(name, "output", path))

        yield module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
        yield module.register_forward_pre_hook(begin)
        yield module.register_forward_hook(leave)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _Recorder.paused:
            return result
        call = self._count(func)
        # A parameter that an optimizer writes inside the recording stays that parameter.
        made = [(path, tensor) for path, tensor in tensors(result) if id(tensor) not in self._parameters]
        if made and (name := _name(func)) is not None:
            used = list(tensors((*args, kwargs)))
            frame = _caller()
            op = Op(
                name=name,
                inputs=[self._value(tensor) for _, tensor in used],
                outputs=[],
                modules=tuple(frame.module for frame in self._stack),
                where=f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}",
                arguments=args,
                keywords=kwargs,
                paths=tuple(_argument_path(path, len(args)) for path, _ in used),
                results=tuple(path for path, _ in made),
                call=call,
                dropped=_drops_result(frame),
            )
            for value in dict.fromkeys(op.inputs):
                value.consumers.append(op)
            for _, tensor in made:
                op.outputs.append(self._add(tensor, Value(producer=op)))
            self.tape.ops.append(op)
        return result

    def _count(self, func: Any) -> int | None:
        """Which call of a function this is in the forward that is running."""
        name = known_functions().get(func) if self._stack and type(func).__hash__ is not None else None
        if name is None:
            return None
        counts = self._stack[-1].counts
        counts[name] = counts.get(name, 0) + 1
        return counts[name] - 1

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
    """The operation; that of a property which makes a view, and ``None`` for others like ``grad``."""
    name = function_name(func)
    return _PROPERTIES.get(func.__self__.__name__) if name == "get" else name


def _caller() -> FrameType:
    """The user's code that called the operation."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_SITE_PACKAGES):
        frame = frame.f_back
    return frame


def _drops_result(frame: FrameType) -> bool:
    """Whether the statement that is running drops what its call returns."""
    code = frame.f_code.co_code
    after = frame.f_lasti + 2
    while after < len(code) and code[after] == dis.opmap.get("CACHE", -1):
        after += 2
    return after < len(code) and code[after] == dis.opmap["POP_TOP"]
