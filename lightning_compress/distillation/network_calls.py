"""Inputs and outputs of the calls of a network and of named modules inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_compress.errors import CompressionError, closest
from lightning_compress.foundation.nested import tensors
from lightning_compress.foundation.recorded_forward import unrecorded


@dataclass
class Call:
    """One call of a network.

    Attributes:
        entry: Full name of the module that was called; ``""`` is the root.
        args: Positional arguments, unchanged.
        kwargs: Keyword arguments.
        output: What it returned; ``None`` while it runs.
        outputs: Module name → what that module returned inside this call, in order.
    """

    entry: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)
    _versions: list[tuple[Tensor, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._note((self.args, self.kwargs))

    def seal(self, output: Any) -> None:
        """Take the output."""
        self.output = output
        self._note(output)

    def _note(self, read_later: Any) -> None:
        self._versions += [(tensor, tensor._version) for _, tensor in tensors(read_later)]

    def refuse_changed(self, owner: str) -> None:
        """Refuse a call whose inputs were written to since it began, or its output since it ended.

        Raises:
            CompressionError: They were.
        """
        for tensor, version in self._versions:
            if tensor._version != version:
                raise CompressionError(
                    f"{owner}: the inputs or the output of {self.entry or 'the network'!r} were changed in place, in "
                    f"the call or after it (a tensor of shape {list(tensor.shape)}), so they cannot be compared with "
                    f"the teacher's. Write x = x + y instead of x += y there."
                )


class Watch:
    """Keeps the calls of a network while it is entered as a context.

    The network is the outermost module with parameters that is called: the root where a step calls ``self(x)``, or
    ``net`` where it calls ``self.net(x)``; the first calls show which. Hooks exist only inside the context, behind
    all others, so that they see what the next module sees. Calls without gradients are none of a training step's
    own and are passed over.

    Args:
        root: Root of the module names.
        modules: Full names of modules whose outputs are kept.
        entry: Full name of the network, where it is known.
        graded: Whether calls without gradients are passed over.
        owner: Name of the owner, for messages.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with (watch := Watch(net, ["1"])):
        ...     _ = net(torch.zeros(4, 2))
        >>> watch.calls[0].outputs["1"][0].shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        root: nn.Module,
        modules: Sequence[str] = (),
        *,
        entry: str | None = None,
        graded: bool = True,
        owner: str = "Watch",
    ) -> None:
        self.calls: list[Call] = []
        self.entry = entry
        self._owner, self._graded = owner, graded
        self._modules = dict(root.named_modules(remove_duplicate=False))
        if entry is not None and entry not in self._modules:
            raise CompressionError.field(
                f"{owner}.module",
                expected="the full name of a module",
                got=entry,
                fix=closest(entry, [name for name in self._modules if name]),
            )
        self._kept = [(self._modules[name], _Keep(self, name)) for name in dict.fromkeys(modules)]
        self._entries = [(self._modules[name], _Enter(self, name)) for name in self._candidates()]
        self.compiled = any(_is_compiled(module) for module in self._modules.values())
        self._depth = 0
        self._open: Call | None = None
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Watch:
        self.calls.clear()
        self._depth, self._open = 0, None
        for module, hook in self._kept:
            self._handles.append(module.register_forward_hook(hook))
        for module, enter in self._entries:
            self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
            self._handles.append(module.register_forward_hook(enter.leave))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def settle(self) -> None:
        """Keep to the module that was called from here on.

        Raises:
            CompressionError: None was called, or several side by side.
        """
        names = list(dict.fromkeys(call.entry for call in self.calls))
        if not names:
            raise CompressionError(
                f"{self._owner}: the step called no module with parameters while gradients are recorded, so there is "
                f"nothing to distill. Call the network as a module (self(x) or self.net(x), not self.net.forward(x))."
            )
        if len(names) > 1:
            raise CompressionError(
                f"{self._owner}: the step calls several modules side by side "
                f"({', '.join(name or 'self' for name in names)}), and one is distilled. Define forward and call "
                f"self(x) in the step, or give module={names[0]!r}."
            )
        if self.entry is None:
            self.entry = names[0]
            self._entries = [(module, enter) for module, enter in self._entries if enter.name == self.entry]

    def enter(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before a module that may be the network."""
        self._depth += 1
        if self._depth == 1 and (torch.is_grad_enabled() or not self._graded):
            self._open = Call(name, args, kwargs)

    def leave(self, output: Any) -> None:
        """Called after it."""
        self._depth -= 1
        if self._depth == 0 and self._open is not None:
            self._open.seal(output)
            self.calls.append(self._open)
            self._open = None

    def keep(self, name: str, output: Any) -> None:
        """Called after a module whose output is kept."""
        tensor = next((tensor for _, tensor in tensors(output)), None)
        if self._open is not None and tensor is not None:
            # What follows may write to it (an in-place ReLU, a residual +=). A copy is no operation of the model's.
            if torch.compiler.is_compiling():
                kept = tensor.clone()
            else:
                with unrecorded():
                    kept = tensor.clone()
            self._open.outputs.setdefault(name, []).append(kept)

    def _candidates(self) -> Iterator[str]:
        if self.entry is not None:
            yield self.entry
            return
        compiled: list[str] = []
        for name, module in self._modules.items():
            # Hooks inside a compiled module would become part of its code.
            if any(name.startswith(prefix) for prefix in compiled) or next(module.parameters(), None) is None:
                continue
            if name and _is_compiled(module):
                compiled.append(f"{name}.")
            yield name


def _is_compiled(module: nn.Module) -> bool:
    return isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None


@dataclass(frozen=True)
class _Enter:
    """The two hooks of a module that may be the network; the same objects at every step, for compiled code."""

    watch: Watch
    name: str

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.watch.enter(self.name, args, kwargs)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.watch.leave(output)


@dataclass(frozen=True)
class _Keep:
    watch: Watch
    name: str

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.watch.keep(self.name, output)


def pick_output(output: Any, owner: str) -> Tensor:
    """The tensor that a network's output stands for.

    Args:
        output: A tensor, a tuple (its first tensor counts), or an output object or mapping with ``logits``.
        owner: Name of the owner, for messages.

    Raises:
        CompressionError: There is none.

    Example:
        >>> pick_output({"loss": 0, "logits": torch.zeros(2)}, "demo")
        tensor([0., 0.])
    """
    found = output
    if isinstance(output, tuple | list) and not hasattr(output, "logits"):
        found = next((tensor for _, tensor in tensors(output)), None)
    elif isinstance(output, Mapping):
        found = output.get("logits")
    elif not isinstance(output, Tensor):
        found = getattr(output, "logits", None)
    else:
        return output
    if not isinstance(found, Tensor):
        raise CompressionError(
            f"{owner}: expected the network to return a tensor, a tuple with one, or something with 'logits', got "
            f"{type(output).__name__}."
        )
    return found
