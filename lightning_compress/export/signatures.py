"""Names of a forward's arguments, and a forward that runs a submodule."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from types import MethodType
from typing import Any

from torch import nn

from lightning_compress.foundation.nested import tensors


def called_through(root: nn.Module, name: str) -> nn.Module:
    """Make a call of the root one of its submodule, in place; the root keeps its keys and quantizers.

    Args:
        root: A copy of the user's module.
        name: Full name of the submodule; ``""`` leaves the root as it is.

    Example:
        >>> root = called_through(nn.ModuleDict({"net": nn.Linear(2, 1)}), "net")
        >>> root(torch.zeros(3, 2)).shape
        torch.Size([3, 1])
    """
    if not name:
        return root

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.get_submodule(name)(*args, **kwargs)

    signature = inspect.signature(root.get_submodule(name).forward)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    forward.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])  # type: ignore[attr-defined]
    # A bound method follows its module into deep copies.
    root.forward = MethodType(forward, root)
    return root


def spell_keywords(model: nn.Module, names: Iterable[str]) -> None:
    """Let a forward's signature name what it takes as ``**keywords``, in place: torch.export frees dimensions by name.

    Args:
        model: A copy of the user's module.
        names: The keyword arguments of a call.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> net.forward = lambda **inputs: inputs["x"]
        >>> spell_keywords(net, ["x"])
        >>> inspect.signature(net.forward)
        <Signature (*, x)>
    """
    forward = model.forward
    signature = inspect.signature(forward)
    own = {n: p for n, p in signature.parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD}
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names if name not in own]
    if more:

        def spelled(*args: Any, **kwargs: Any) -> Any:
            return forward(*args, **kwargs)

        spelled.__signature__ = signature.replace(parameters=[*own.values(), *more])  # type: ignore[attr-defined]
        model.forward = spelled


def input_names(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Name the tensors of a call by the parameters that they are passed for.

    Args:
        forward: The function that is called.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Returns:
        Name → tensor in the order of the parameters; tensors inside a structure get their place as a suffix.

    Example:
        >>> def forward(x, mask=None): ...
        >>> list(input_names(forward, (torch.zeros(1),), {"mask": torch.zeros(1)}))
        ['x', 'mask']
    """
    bound = inspect.signature(forward).bind(*args, **kwargs)
    parameters = inspect.signature(forward).parameters
    found = {}
    for parameter, value in bound.arguments.items():
        keywords = parameters[parameter].kind is inspect.Parameter.VAR_KEYWORD
        for path, tensor in tensors(value):
            places = path if keywords else (parameter, *path)
            found["_".join(map(str, places))] = tensor
    return found
