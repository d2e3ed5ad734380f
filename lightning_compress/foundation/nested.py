"""Nested arguments and results: the tensors in them, one of them replaced, and example inputs as arguments."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

Key = int | str


def tensors(tree: Any, path: tuple[Key, ...] = ()) -> Iterator[tuple[tuple[Key, ...], torch.Tensor]]:
    """Every tensor in nested tuples, lists and mappings, with its path.

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


def replaced(
    tree: Any, path: tuple[Key, ...], function: Callable[[torch.Tensor], torch.Tensor], *, copies: bool = False
) -> Any:
    """The same tree with ``function`` applied to the tensor at ``path``; a missing path changes nothing.

    Args:
        tree: Nested tuples, lists and dictionaries.
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
        if hasattr(tree, "_fields"):
            return type(tree)(*items)
        return type(tree)(items)
    if isinstance(tree, dict) and key in tree:
        if copies:
            # Compilers trace the method of plain dictionaries; that of a subclass may return another class.
            tree = tree.copy() if type(tree) in (dict, OrderedDict) else copy.copy(tree)
        tree[key] = replaced(tree[key], rest, function, copies=copies)
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
