"""Names of what a forward takes and gives, and other signatures for it: of a submodule, or of tensors alone."""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.nested import Key, mapped, tensors


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


def input_names(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, partial: bool = False
) -> dict[str, Any]:
    """Name the tensors of a call by the parameters that they are passed for.

    Args:
        forward: The function that is called.
        args: Positional arguments.
        kwargs: Keyword arguments.
        partial: Whether arguments may be missing.

    Returns:
        Name → tensor in the order of the parameters; tensors inside a structure get their place as a suffix.

    Example:
        >>> def forward(x, mask=None): ...
        >>> list(input_names(forward, (torch.zeros(1),), {"mask": torch.zeros(1)}))
        ['x', 'mask']
    """
    signature = inspect.signature(forward)
    bound = (signature.bind_partial if partial else signature.bind)(*args, **kwargs)
    parameters = signature.parameters
    found = {}
    for parameter, value in bound.arguments.items():
        keywords = parameters[parameter].kind is inspect.Parameter.VAR_KEYWORD
        for path, tensor in tensors(value):
            places = path if keywords else (parameter, *path)
            found["_".join(map(str, places))] = tensor
    return found


def named_outputs(output: Any, taken: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """Name the tensors of a forward's result by the keys or fields that they stand under.

    Args:
        output: A tensor, or tuples, lists, mappings and dataclasses of them. What holds no tensor has no name.
        taken: Names of inputs, which no output may have in a graph.

    Example:
        >>> list(named_outputs({"logits": torch.zeros(1), "states": (torch.zeros(1), torch.zeros(1))}))
        ['logits', 'states_0', 'states_1']
        >>> list(named_outputs((torch.zeros(1), None, torch.zeros(1))))
        ['output_0', 'output_2']
    """
    found: dict[str, torch.Tensor] = {}
    for path, tensor in tensors(output):
        words = _words(output, path)
        if not words or words[0].isdigit():
            words = ["output", *words]
        name = "_".join(words)
        while name in found or name in taken:
            name = f"{name}_out"
        found[name] = tensor
    return found


def _words(tree: Any, path: tuple[Key, ...]) -> list[str]:
    """A path in words: items of named tuples by their names."""
    words = []
    for key in path:
        named = getattr(tree, "_fields", None)
        words.append(str(named[key] if named and isinstance(key, int) else key))
        tree = tree[key] if hasattr(tree, "__getitem__") else getattr(tree, str(key))
    return words


def take_tensors(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Make a model take the tensors of a call one by one, and give nothing but tensors, in place.

    Whatever they stand in (a dataclass, a list, numbers, ``None``) stays as it is in this call. A result that is one
    tensor, or a tuple or list of tensors, stays so; any other becomes a dictionary by ``named_outputs``.

    Args:
        model: A copy of the user's module.
        args: Positional arguments of the call.
        kwargs: Keyword arguments.

    Returns:
        Name → tensor, in the order in which the model takes them now: first those that it takes by position, then
        those by keyword. A name is what Python can spell.

    Raises:
        CompressionError: The call holds no tensor.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> net.forward = lambda batch: {"y": batch["x"].sum(1), "count": len(batch)}
        >>> given, _ = take_tensors(net, ({"x": torch.ones(3, 2), "flag": True},), {})
        >>> list(given), net(*given.values())
        (['batch_x'], {'y': tensor([2., 2., 2.])})
    """
    forward = model.forward
    signature = inspect.signature(forward)
    names = input_names(forward, args, kwargs)
    given = dict(zip(_identifiers(names), names.values(), strict=True))
    if not given:
        raise CompressionError(f"{type(model).__name__} is called without tensors: its file would take nothing.")
    positional = len(input_names(forward, args, {}, partial=True))

    def enter(_module: nn.Module, some: tuple[torch.Tensor, ...], others: dict[str, torch.Tensor]) -> Any:
        rest = iter((*some, *(others[name] for name in list(given)[len(some) :])))
        call = signature.bind(*args, **kwargs)
        call.arguments.update(mapped(call.arguments, lambda _: next(rest)))
        # By position and by keyword as in the call: quantizers of arguments stand where they were passed.
        every = {**call.kwargs, **call.arguments}
        return call.args[: len(args)], {name: every[name] for name in kwargs}

    def called(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    # torch.export names the inputs by the signature; the arguments are put together before any other hook sees them.
    called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in given]
    )
    model.forward = called
    model.register_forward_pre_hook(enter, prepend=True, with_kwargs=True)
    model.register_forward_hook(lambda _module, _flat, output: only_tensors(output))
    items = list(given.items())
    return dict(items[:positional]), dict(items[positional:])


def only_tensors(output: Any) -> Any:
    """A forward's result without what is no tensor, each tensor once.

    Example:
        >>> only_tensors({"y": torch.ones(1), "cache": object()})
        {'y': tensor([1.])}
    """
    seen: set[int] = set()

    def once(tensor: torch.Tensor) -> torch.Tensor:
        again = id(tensor) in seen
        seen.add(id(tensor))
        return tensor.clone() if again else tensor

    found = {name: once(tensor) for name, tensor in named_outputs(output).items()}
    if isinstance(output, torch.Tensor):
        return found["output"]
    plain = isinstance(output, tuple | list) and not hasattr(output, "_fields")
    return tuple(found.values()) if plain and all(isinstance(item, torch.Tensor) for item in output) else found


def restored(outputs: Iterable[torch.Tensor], like: Any) -> Any:
    """Put a file's outputs in the structure that the module returns.

    Raises:
        CompressionError: There are fewer than the module returns.

    Example:
        >>> restored([torch.ones(1)], {"logits": torch.zeros(1), "loss": None})
        {'logits': tensor([1.]), 'loss': None}
    """
    given = list(outputs)
    rest = iter(given)
    try:
        return mapped(like, lambda _: next(rest))
    except StopIteration:
        raise CompressionError(f"The written file gives {len(given)} outputs, fewer than the model.") from None


def completed(outputs: Any, like: Any) -> Any:
    """Put outputs in the structure of a result that holds more: what only it holds, as a loss, is not a number.

    Example:
        >>> completed({"logits": torch.ones(1)}, {"loss": torch.zeros(()), "logits": torch.zeros(1)})
        {'loss': tensor(nan), 'logits': tensor([1.])}
    """
    found, wanted = named_outputs(outputs), named_outputs(like)
    if not found.keys() <= wanted.keys() or (isinstance(like, tuple | list) and not hasattr(like, "_fields")):
        # Without names, what is missing comes first, as a loss before its logits.
        found = dict(zip(list(wanted)[len(wanted) - len(found) :], found.values(), strict=True))
    return restored((found.get(name, _unknown(tensor)) for name, tensor in wanted.items()), like)


def _unknown(tensor: torch.Tensor) -> torch.Tensor:
    return torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else torch.zeros_like(tensor)


def _identifiers(names: Iterable[str]) -> list[str]:
    """The names as Python could spell them, each once."""
    found: list[str] = []
    for name in names:
        word = re.sub(r"\W", "_", name)
        if not word.isidentifier() or keyword.iskeyword(word):
            word = f"_{word}"
        while word in found:
            word += "_"
        found.append(word)
    return found
