"""A model whose outputs several evaluations on the same data share."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_compress.foundation.pytree import tree_flatten, tree_leaves


class Remembered:
    """Runs a model once on each input, and gives what it gave when the same input comes again.

    Args:
        model: A function of its inputs alone, as a network in eval mode is.
        limit: Bytes of outputs that are kept; what is beyond them is computed again.

    Example:
        >>> calls = []
        >>> double = Remembered(lambda x: calls.append(1) or 2 * x)
        >>> double(torch.ones(2)), double(torch.ones(2)), len(calls)
        (tensor([2., 2.]), tensor([2., 2.]), 1)
    """

    def __init__(self, model: Callable[..., Any], *, limit: int = 2**28) -> None:
        self._model, self._left = model, limit
        self._outputs: dict[bytes, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's outputs, for the caller to keep or change; the inputs stay as they are."""
        key = _digest((args, kwargs))
        if key in self._outputs:
            return copy.deepcopy(self._outputs[key])
        # The forward may work in place on its inputs.
        outputs = self._model(*copy.deepcopy(args), **copy.deepcopy(kwargs))
        size = sum(leaf.nbytes for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor))
        if key is not None and size <= self._left:
            self._left -= size
            self._outputs[key] = copy.deepcopy(outputs)
        return outputs


def _digest(inputs: Any) -> bytes | None:
    """Of structure, types, shapes and values; ``None`` where something else than tensors and plain values is inside."""
    leaves, structure = tree_flatten(inputs)
    found = hashlib.blake2b(repr(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided and not leaf.is_quantized:
            found.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
            found.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif leaf is None or isinstance(leaf, bool | int | float | str):
            found.update(repr(leaf).encode())
        else:
            return None
    return found.digest()
