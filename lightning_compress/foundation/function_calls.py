"""Hooks on the functions that a module's own forward calls, such as the second ``F.relu`` of a block.

A ``TorchFunctionMode`` is active while such a module runs, and in no other module. Calls are counted by the function's
name within one forward of the module; what its submodules call is theirs. ``torch.compile`` traces the hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

_ATTRIBUTE = "_lightning_compress_function_calls"


def function_name(function: Any) -> str:
    """``torch.Tensor.add_``, ``__iadd__`` and ``torch.add`` are all ``add``.

    Example:
        >>> function_name(torch.Tensor.__iadd__), function_name(F.relu)
        ('add', 'relu')
    """
    name: str = getattr(function, "__name__", type(function).__name__).strip("_")
    for prefix in ("i", "r"):
        if name.startswith(prefix) and name[1:] in {"add", "mul", "sub", "truediv", "matmul"}:
            return name[1:]
    return name


@cache
def known_functions() -> dict[Any, str]:
    """Every function of PyTorch that can be hooked → its name."""
    spaces = (torch, F, torch.Tensor, torch._C._nn, torch.special)
    return {f: function_name(f) for space in spaces for f in _values(space) if callable(f) and not isinstance(f, type)}


def _values(space: Any) -> Iterator[Any]:
    """The attributes of a module or class that can be keys of a dictionary."""
    for name in dir(space):
        value = getattr(space, name, None)
        if type(value).__hash__ is not None:
            yield value


@dataclass(frozen=True, eq=False)
class CallHook:
    """What happens at one function call in a module's own forward.

    Attributes:
        function: Name of the function, as ``function_name`` gives it.
        call: Which of the forward's calls of that function, from 0.
        before: Takes and returns the call's positional and keyword arguments.
        instead: Takes them and gives the result in place of the function.
        after: Takes and returns the result.
    """

    function: str
    call: int
    before: Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]] | None = None
    instead: Callable[..., Any] | None = None
    after: Callable[[Any], Any] | None = None


def on_call(module: nn.Module, hook: CallHook) -> CallHandle:
    """Act at a function call in a module's own forward.

    Args:
        module: The module.
        hook: What to do at which call.

    Returns:
        A handle that removes the hook.

    Example:
        >>> class Twice(nn.Module):
        ...     def forward(self, x):
        ...         return torch.relu(torch.relu(x) - 1)
        >>> net = Twice()
        >>> handle = on_call(net, CallHook("relu", 0, after=lambda y: y * 10))
        >>> net(torch.ones(1))
        tensor([9.])
        >>> handle.remove()
    """
    calls = module.__dict__.get(_ATTRIBUTE)
    if calls is None:
        calls = module.__dict__[_ATTRIBUTE] = _Calls(module)
    calls.hooks.append(hook)
    calls.index()
    return CallHandle(calls, hook)


class CallHandle:
    """Removes a hook of ``on_call``.

    Args:
        calls: All function hooks of the module.
        hook: The one to remove.
    """

    def __init__(self, calls: _Calls, hook: CallHook) -> None:
        self._calls = calls
        self._hook = hook

    def remove(self) -> None:
        """Take the hook off; once the last one is gone, the module runs as before."""
        if self._hook in self._calls.hooks:
            self._calls.hooks.remove(self._hook)
            self._calls.index()


class _Calls:
    """All function hooks of one module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.hooks: list[CallHook] = []
        self.names: dict[Any, str] = {}
        self.at: dict[tuple[str, int], list[CallHook]] = {}
        # One for each forward that is running.
        self._running: list[_Mode] = []
        self._handles: list[RemovableHandle] = [
            module.register_forward_pre_hook(self._enter),
            module.register_forward_hook(self._leave, always_call=True, prepend=True),
        ]
        for part in module.modules():
            if part is not module:
                self._handles.append(part.register_forward_pre_hook(self._deeper, prepend=True))
                self._handles.append(part.register_forward_hook(self._back, always_call=True))

    def index(self) -> None:
        """Find the hooks by function and call; without any, nothing is watched any more."""
        wanted = {hook.function for hook in self.hooks}
        self.names = {f: name for f, name in known_functions().items() if name in wanted}
        self.at = {}
        for hook in self.hooks:
            self.at.setdefault((hook.function, hook.call), []).append(hook)
        if not self.hooks:
            for handle in self._handles:
                handle.remove()
            self.module.__dict__.pop(_ATTRIBUTE, None)

    def __getstate__(self) -> dict[str, Any]:
        # Functions of PyTorch are found again: not all of them can be copied.
        return {**vars(self), "names": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.index()

    def _enter(self, module: nn.Module, args: Any) -> None:
        mode = _Mode(self)
        self._running.append(mode)
        mode.__enter__()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        # Called also when the forward raised, and with nothing entered where a hook before ours raised.
        if self._running:
            self._running.pop().__exit__(None, None, None)

    def _deeper(self, module: nn.Module, args: Any) -> None:
        if self._running:
            self._running[-1].depth += 1

    def _back(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._running and self._running[-1].depth:
            self._running[-1].depth -= 1


class _Mode(TorchFunctionMode):
    def __init__(self, calls: _Calls) -> None:
        super().__init__()
        self.calls = calls
        self.depth = 0
        self.counts: dict[str, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.depth or func not in self.calls.names:
            return func(*args, **kwargs)
        name = self.calls.names[func]
        call = self.counts.get(name, 0)
        self.counts[name] = call + 1
        hooks = self.calls.at.get((name, call), ())
        for hook in hooks:
            if hook.before is not None:
                args, kwargs = hook.before(args, kwargs)
            if hook.instead is not None:
                func = hook.instead
        result = func(*args, **kwargs)
        for hook in hooks:
            if hook.after is not None:
                result = hook.after(result)
        return result
