"""Places where a tensor passes: the arguments and results of modules, and of functions that modules call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.foundation.attention import attend_in_steps
from lightning_compress.foundation.function_calls import CallHandle, CallHook, on_call
from lightning_compress.foundation.nested import Key, replaced_arguments, replaced_at

Handle = torch.utils.hooks.RemovableHandle | CallHandle


@dataclass(frozen=True)
class Boundary:
    """A place where a tensor enters or leaves a module, or a function that the module's own forward calls.

    Attributes:
        module: Full name of the module.
        side: ``"input"``, ``"output"``, or ``"weights"`` for those inside of ``scaled_dot_product_attention``.
        path: Where the tensor stands in the arguments or the result (``()`` for the result itself).
        function: Name of the function; empty for the module itself.
        call: Which of the forward's calls of that function.
    """

    module: str
    side: str
    path: tuple[Key, ...]
    function: str = ""
    call: int = 0


def passed_at(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], paths: Sequence[tuple[Key, ...]]
) -> list[tuple[Key, ...]]:
    """Where arguments of a module stand in this call, which may pass by position what another passes by keyword.

    Example:
        >>> x = torch.zeros(1)
        >>> passed_at(nn.ReLU(), (x,), {}, [("input",)]), passed_at(nn.ReLU(), (), {"input": x}, [(0,)])
        ([(0,)], [('input',)])
    """
    return [path if _stands(path[0], args, kwargs) else _respelled(module, args, kwargs, path) for path in paths]


def _stands(key: Key, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return key in kwargs if isinstance(key, str) else isinstance(key, int) and key < len(args)


def _respelled(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: tuple[Key, ...]
) -> tuple[Key, ...]:
    names = list(inspect.signature(module.forward).parameters)
    key = path[0]
    if isinstance(key, int):
        other: Key = names[key] if key < len(names) else key
    else:
        other = names.index(str(key)) if key in names else key
    return (other, *path[1:]) if _stands(other, args, kwargs) else path


def watch(
    module: nn.Module, place: Boundary, paths: Sequence[tuple[Key, ...]], function: Callable[[Tensor], Tensor]
) -> Handle:
    """Let a function see, and replace, the tensors at a boundary.

    Args:
        module: The boundary's module.
        place: The boundary.
        paths: Where the tensors stand there.
        function: Takes a tensor and returns the one that goes on.

    Returns:
        A handle that takes the function off again.

    Example:
        >>> net = nn.Sequential(nn.ReLU())
        >>> handle = watch(net, Boundary("", "output", ()), [()], lambda x: x + 1)
        >>> net(torch.zeros(1))
        tensor([1.])
        >>> handle.remove()
    """

    def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        found = paths if place.function else passed_at(module, args, kwargs, paths)
        return replaced_arguments(args, kwargs, found, function)

    def leave(result: Any) -> Any:
        return replaced_at(result, paths, function)

    if place.side == "weights":
        return on_call(module, CallHook(place.function, place.call, instead=partial(attend_in_steps, weights=function)))
    if place.function:
        before, after = (enter, None) if place.side == "input" else (None, leave)
        return on_call(module, CallHook(place.function, place.call, before=before, after=after))
    if place.side == "input":
        return module.register_forward_pre_hook(lambda _, args, kwargs: enter(args, kwargs), with_kwargs=True)
    return module.register_forward_hook(lambda _module, _args, output: leave(output))
