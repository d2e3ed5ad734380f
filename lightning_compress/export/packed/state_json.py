"""State of quantizers as JSON: nested dicts, lists and primitives, with tensors put aside."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from lightning_compress.errors import CompressionError

DEEPEST = 64
"""Metadata and the state of quantizers are nested less deeply than this."""

_TENSOR, _FLOAT = "$tensor", "$float"


def without_tensors(tree: Any, tensors: list[torch.Tensor], path: str = "state") -> Any:
    """The tree with every tensor replaced by a mark; the tensors are appended in the order of the marks.

    Raises:
        CompressionError: Something is neither a tensor nor what JSON can hold.

    Example:
        >>> aside = []
        >>> without_tensors({"bits": 8, "scale": torch.ones(())}, aside)
        {'bits': 8, 'scale': {'$tensor': 0}}
        >>> aside
        [tensor(1.)]
    """
    if isinstance(tree, torch.Tensor):
        tensors.append(tree)
        return {_TENSOR: 0}
    if isinstance(tree, dict) and all(isinstance(key, str) for key in tree):
        return {key: without_tensors(value, tensors, f"{path}.{key}") for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_tensors(value, tensors, f"{path}[{k}]") for k, value in enumerate(tree)]
    if isinstance(tree, float) and not math.isfinite(tree):
        return {_FLOAT: str(tree)}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise CompressionError.field(
        path, expected="tensors, numbers, strings, and lists and dicts (with string keys) of them", got=type(tree)
    )


def with_tensors(tree: Any, tensors: Iterator[torch.Tensor]) -> Any:
    """The inverse of ``without_tensors``; tuples come back as lists."""
    if isinstance(tree, list):
        return [with_tensors(value, tensors) for value in tree]
    if not isinstance(tree, dict):
        return tree
    if tree.keys() == {_TENSOR}:
        found = next(tensors, None)
        if found is None:
            raise CompressionError("more marks of tensors than tensors")
        return found
    if tree.keys() == {_FLOAT} and tree[_FLOAT] in ("nan", "inf", "-inf"):
        return float(tree[_FLOAT])
    return {key: with_tensors(value, tensors) for key, value in tree.items()}


def is_deep(tree: Any) -> bool:
    """Whether dicts and lists are nested so deeply that going through them could pass Python's limit.

    Example:
        >>> is_deep([[[]]]), is_deep(eval("[" * 80 + "]" * 80))
        (False, True)
    """
    level = [tree]
    for _ in range(DEEPEST):
        below = [value for item in level for value in (item.values() if isinstance(item, dict) else item)]
        level = [value for value in below if isinstance(value, dict | list | tuple)]
        if not level:
            return False
    return True
