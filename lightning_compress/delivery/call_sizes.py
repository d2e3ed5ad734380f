"""Sizes of the tensors that a network is called with: which dimensions differ between calls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_compress.export.signatures import input_names


class CallSizes:
    """The shapes of each input over all calls that were seen.

    Example:
        >>> sizes, net = CallSizes(), nn.Embedding(9, 2)
        >>> handle = sizes.watch(net)
        >>> for length in (5, 7):
        ...     _ = net(torch.zeros(3, length, dtype=torch.int64))
        >>> handle.remove()
        >>> sizes.varying()
        {'input': {1: 'input_1'}}
    """

    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = defaultdict(list)

    def watch(self, network: nn.Module) -> RemovableHandle:
        """See every call of a module, until the handle is removed."""

        def see(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.see(network.forward, args, kwargs)

        return network.register_forward_pre_hook(see, with_kwargs=True, prepend=True)

    def see(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Take the shapes of a call."""
        for name, tensor in input_names(forward, args, kwargs).items():
            self._shapes[name].append(tuple(tensor.shape))

    def varying(self) -> dict[str, dict[int, str]]:
        """Dimensions, but for the first, that had several sizes, each with a name; those of equal sizes share one.

        An input whose number of dimensions changes between calls has none.
        """
        names: dict[tuple[int, ...], str] = {}
        found: dict[str, dict[int, str]] = {}
        for name, shapes in self._shapes.items():
            if len({len(shape) for shape in shapes}) > 1:
                continue
            for axis, sizes in list(enumerate(zip(*shapes, strict=True)))[1:]:
                if len(set(sizes)) > 1:
                    found.setdefault(name, {})[axis] = names.setdefault(sizes, f"{name}_{axis}")
        return found
