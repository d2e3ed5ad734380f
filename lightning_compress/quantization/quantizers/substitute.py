"""Tensors that a module reads instead of its parameters, while it runs.

An entry in an instance's ``__dict__`` is found before ``Module.__getattr__`` looks among the parameters. So any
``forward`` that reads ``self.weight`` works, subclasses' own included, and Parameters, classes and ``state_dict`` keys
stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True, eq=False)
class Shadow:
    """A tensor instead of one attribute.

    Attributes:
        owner: The module that has the attribute.
        attribute: Its name.
        tensor: Makes the tensor, once a forward.
    """

    owner: nn.Module
    attribute: str
    tensor: Callable[[], torch.Tensor]


class Shadows:
    """Shadows attributes while a module runs, which may be another than their owner.

    Args:
        shadows: What is put instead of what.
    """

    def __init__(self, shadows: list[Shadow]) -> None:
        self.shadows = shadows
        # One entry for each forward that is running: what it has put in place.
        self._running: list[list[Shadow]] = []

    def attach(self, host: nn.Module) -> list[RemovableHandle]:
        """Act whenever a module runs."""
        return [
            host.register_forward_pre_hook(self._enter),
            host.register_forward_hook(self._leave, always_call=True),
        ]

    def active(self, module: nn.Module) -> bool:
        """Whether this forward is to read the shadows."""
        return True

    def _enter(self, module: nn.Module, args: Any) -> None:
        placed: list[Shadow] = []
        self._running.append(placed)
        if self.active(module):
            for shadow in self.shadows:
                # A module around this one may read the same attribute, and has it in place already.
                if shadow.attribute not in shadow.owner.__dict__:
                    shadow.owner.__dict__[shadow.attribute] = shadow.tensor()
                    placed.append(shadow)
        _collect_flat_weights(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        # Called also when the forward raised, and with nothing noted where a hook before ours raised.
        for shadow in self._running.pop() if self._running else ():
            shadow.owner.__dict__.pop(shadow.attribute, None)
        _collect_flat_weights(module)


def _collect_flat_weights(module: nn.Module) -> None:
    """Let a recurrent module, which keeps a list of its weights, see what its attributes are now."""
    if isinstance(module, nn.RNNBase):
        module.__dict__["_flat_weights"] = [getattr(module, name, None) for name in module._flat_weights_names]
