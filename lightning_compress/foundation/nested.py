"""Nested arguments and results: the tensors in them, and one or all of them replaced.

Tuples, named tuples, lists, mappings and dataclasses are looked into, whether or not PyTorch knows their classes.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch

Key = int | str


def tensors(tree: Any, path: tuple[Key, ...] = ()) -> Iterator[tuple[tuple[Key, ...], torch.Tensor]]:
    """Every tensor in nested tuples, lists, mappings and dataclasses, with its path.

    Example:
        >>> [path for path, _ in tensors((torch.zeros(1), {"mask": torch.zeros(1)}))]
        [(0,), (1, 'mask')]
    """
    if isinstance(tree, torch.Tensor):
        yield path, tree
    elif isinstance(tree, tuple | list):
        for index, item in enumerate(tree):
            yield from tensors(item, (*path, index))
    elif isinstance(tree, Mapping):
        for key, item in tree.items():
            if isinstance(key, str | int):
                yield from tensors(item, (*path, key))
    else:
        for name in _fields(tree):
            yield from tensors(getattr(tree, name), (*path, name))


def mapped(tree: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    """The same tree with ``function`` applied to every tensor, in the order of ``tensors``; containers are copied.

    Example:
        >>> mapped({"x": torch.zeros(1), "name": "one"}, lambda x: x + 1)
        {'x': tensor([1.]), 'name': 'one'}
    """
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, tuple | list):
        return _like(tree, [mapped(item, function) for item in tree])
    if isinstance(tree, MutableMapping):
        tree = copy.copy(tree)
        for key, item in list(tree.items()):
            if isinstance(key, str | int):
                tree[key] = mapped(item, function)
        return tree
    if isinstance(tree, Mapping):
        return {key: mapped(item, function) if isinstance(key, str | int) else item for key, item in tree.items()}
    fields = {name: mapped(getattr(tree, name), function) for name in _fields(tree)}
    return _with_fields(tree, fields) if fields else tree


def _like(items: tuple[Any, ...] | list[Any], new: list[Any]) -> Any:
    return type(items)(*new) if hasattr(items, "_fields") else type(items)(new)


def _fields(tree: Any) -> tuple[str, ...]:
    """Names of a dataclass's fields."""
    if not dataclasses.is_dataclass(tree) or isinstance(tree, type):
        return ()
    return tuple(field.name for field in dataclasses.fields(tree) if hasattr(tree, field.name))


def _with_fields(tree: Any, fields: Mapping[str, Any]) -> Any:
    """A copy of a dataclass, of which some may be frozen, with other values."""
    tree = copy.copy(tree)
    for name, value in fields.items():
        object.__setattr__(tree, name, value)
    return tree


def replaced(
    tree: Any, path: tuple[Key, ...], function: Callable[[torch.Tensor], torch.Tensor], *, copies: bool = False
) -> Any:
    """The same tree with ``function`` applied to the tensor at ``path``; a missing path changes nothing.

    Args:
        tree: Nested tuples, lists, dictionaries and dataclasses.
        path: Where the tensor stands.
        function: What makes the new tensor.
        copies: Whether dictionaries on the path are copied; otherwise they are written to.

    Example:
        >>> replaced((torch.zeros(1), 7), (0,), lambda x: x + 1)
        (tensor([1.]), 7)
    """
    if not path:
        return function(tree) if isinstance(tree, torch.Tensor) else tree
    key, rest = path[0], path[1:]
    if isinstance(tree, tuple | list) and isinstance(key, int) and key < len(tree):
        items = [replaced(item, rest, function, copies=copies) if i == key else item for i, item in enumerate(tree)]
        return _like(tree, items)
    if isinstance(tree, dict) and key in tree:
        if copies:
            # Compilers trace the method of plain dictionaries; that of a subclass may return another class.
            tree = tree.copy() if type(tree) in (dict, OrderedDict) else copy.copy(tree)
        tree[key] = replaced(tree[key], rest, function, copies=copies)
        return tree
    if key in _fields(tree):
        return _with_fields(tree, {str(key): replaced(getattr(tree, str(key)), rest, function, copies=copies)})
    return tree


def replaced_at(
    tree: Any,
    paths: Sequence[tuple[Key, ...]],
    function: Callable[[torch.Tensor], torch.Tensor],
    *,
    copies: bool = False,
) -> Any:
    """``replaced`` at several paths; a tensor that stands at more than one goes through ``function`` once.

    Example:
        >>> x = torch.zeros(1)
        >>> first, second = replaced_at((x, x), [(0,), (1,)], lambda x: x + 1)
        >>> first is second
        True
    """
    made: list[tuple[torch.Tensor, torch.Tensor]] = []

    def once(x: torch.Tensor) -> torch.Tensor:
        for before, after in made:
            if x is before:
                return after
        made.append((x, function(x)))
        return made[-1][1]

    for path in paths:
        tree = replaced(tree, path, once if len(paths) > 1 else function, copies=copies)
    return tree


def replaced_arguments(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    paths: Sequence[tuple[Key, ...]],
    function: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``replaced_at`` for the arguments of a call, of which the caller's own dictionaries stay as they are.

    A path that begins with a name leads to a keyword argument.
    """
    located = [(int(isinstance(path[0], str)), *path) for path in paths]
    found: tuple[tuple[Any, ...], dict[str, Any]] = replaced_at((args, kwargs), located, function, copies=True)
    return found
