"""Which module is exported, and with which inputs: found by watching one step of the user's own code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError, closest
from lightning_compress.foundation.example_inputs import call_arguments, in_float32, in_other_precision
from lightning_compress.foundation.nested import tensors
from lightning_compress.foundation.pytree import tree_map_only

_SAMPLES = 4


@dataclass(frozen=True)
class Entry:
    """One call of the module that is exported.

    Attributes:
        name: Full name of the module; ``""`` is the root.
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def example_inputs(self) -> tuple[Any, ...]:
        """Both in the form that ``to_onnx`` takes; the last item is always the keyword arguments."""
        return (*self.args, self.kwargs)

    def first(self, samples: int) -> Entry:
        """The same call with the first samples of its batch."""
        return Entry(self.name, *_copied(self.args, self.kwargs, samples))

    def repeated(self, samples: int) -> Entry:
        """The same call with a batch of so many samples: those that there are, over and over."""
        batch = next((t.shape[0] for _, t in tensors((*self.args, self.kwargs)) if t.ndim), 1)
        times = -(-samples // max(batch, 1))

        def repeat(tensor: torch.Tensor) -> torch.Tensor:
            whole = tensor.ndim and tensor.shape[0] == batch
            return torch.cat([tensor] * times)[:samples] if whole else tensor

        args, kwargs = tree_map_only(torch.Tensor, repeat, (self.args, self.kwargs))
        return Entry(self.name, args, kwargs)

    def with_inputs(self, example_inputs: Any) -> Entry:
        """The same module with inputs that the user gave: a tensor, a tuple of arguments or a dict of keywords."""
        args, kwargs = call_arguments(example_inputs)
        return Entry(self.name, *_copied(tuple(args), dict(kwargs), None))


class EntryWatch:
    """Watches a model until a step has called it.

    The module that is exported is the outermost one with parameters that a step calls: the root where the step calls
    ``self(x)``, or ``net`` where it calls ``self.net(x)``. Its first arguments are kept: detached, on the CPU, cut
    to four samples, in float32 where copies of the root are.

    Args:
        root: The user's module.
        module: Full name of the module to export, where it cannot be found by watching.
        redirected: Whether steps themselves run through ``root.__call__``, as under a distributed wrapper; that call
            is not the model's.
        field: Name of the owner, for messages.

    Attributes:
        names: The outermost modules that were called, in order.

    Example:
        >>> root = nn.ModuleDict({"net": nn.Linear(2, 1)})
        >>> with EntryWatch(root) as watch:
        ...     _ = root["net"](torch.zeros(8, 2))
        >>> watch.entry().name, watch.entry().args[0].shape
        ('net', torch.Size([4, 2]))
    """

    def __init__(
        self, root: nn.Module, *, module: str | None = None, redirected: bool = False, field: str = "EntryWatch"
    ) -> None:
        self.names: list[str] = []
        self._root = root
        self._field = field
        self._redirected = redirected
        self._first: Entry | None = None
        self._stack: list[str | None] = []
        modules = dict(root.named_modules())
        if module is not None:
            if module not in modules:
                raise CompressionError.field(
                    f"{field}.module",
                    expected="the full name of a module",
                    got=module,
                    fix=closest(module, [name for name in modules if name]),
                )
            modules = {module: modules[module]}
        self._handles = [
            handle
            for name, watched in modules.items()
            if next(watched.parameters(), None) is not None
            for handle in self._watch(name, watched)
        ]

    def __enter__(self) -> EntryWatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def entry(self) -> Entry:
        """What the step called.

        Raises:
            CompressionError: Nothing was called, or several modules side by side.
        """
        if self._first is None:
            raise CompressionError(
                f"{self._field}: the step called no module that has parameters, so there is nothing to export. Call "
                f"the network as a module (self(x) or self.net(x), not self.net.forward(x))."
            )
        if len(self.names) > 1:
            called = ", ".join(name or "self" for name in self.names)
            raise CompressionError(
                f"{self._field}: the step calls several modules side by side ({called}), and one is exported. Define "
                f"forward and call self(x) in the steps, or give module={self.names[0]!r}."
            )
        return self._first

    def _watch(self, name: str, module: nn.Module) -> tuple[torch.utils.hooks.RemovableHandle, ...]:
        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name == "" and self._redirected and not self._stack:
                self._stack.append(None)
                return
            outermost = not any(caller is not None for caller in self._stack)
            self._stack.append(name)
            if outermost and name not in self.names:
                self.names.append(name)
            if self._first is None:
                kept = _copied(args, kwargs, _SAMPLES)
                self._first = Entry(name, *(in_float32(kept) if in_other_precision(self._root) else kept))

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
            self._stack.pop()

        # First among the hooks, so that the inputs are seen as they came.
        return (
            module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True),
            module.register_forward_hook(leave, always_call=True),
        )


def _copied(
    args: tuple[Any, ...], kwargs: dict[str, Any], samples: int | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Detached copies on the CPU; tensors that have the first one's batch size are cut to some samples."""
    batch = next((t.shape[0] for _, t in tensors((*args, kwargs)) if t.ndim), None)

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        if samples is not None and tensor.ndim and tensor.shape[0] == batch:
            tensor = tensor[:samples]
        return tensor.detach().cpu().clone()

    # Tensors made under inference_mode would poison later training steps.
    with torch.inference_mode(False):
        copied: tuple[tuple[Any, ...], dict[str, Any]] = tree_map_only(torch.Tensor, copy, (args, kwargs))
    return copied
