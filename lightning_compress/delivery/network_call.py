"""Which module is exported, and with which inputs: found by watching one step of the user's own code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from lightning_compress.errors import CompressionError, closest
from lightning_compress.export.signatures import named_outputs
from lightning_compress.export.trace import trace
from lightning_compress.foundation.example_inputs import (
    batch_size,
    call_arguments,
    evaluating,
    first_samples,
    in_float32,
    in_other_precision,
)
from lightning_compress.foundation.nested import mapped, tensors

Passed = Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]
"""Positional and keyword arguments of a call of the steps → those that a file takes."""

_SAMPLES = 4
_LABELS = re.compile(r"(.*_)?(labels?|targets?|y)")


@dataclass(frozen=True)
class Entry:
    """One call of the module that is exported.

    Attributes:
        name: Full name of the module; ``""`` is the root.
        args: Positional arguments.
        kwargs: Keyword arguments.
        left_out: Names of arguments that the steps pass, and the exported call does not: labels, for one.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    left_out: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        """Whether there is such a call: steps that call parts of a network have no single one."""
        return bool(self.args or self.kwargs)

    @property
    def samples(self) -> int | None:
        """Samples of the call, where that can be told."""
        return batch_size((self.args, self.kwargs))

    @property
    def example_inputs(self) -> tuple[Any, ...]:
        """Both in the form that ``to_onnx`` takes; the last item is always the keyword arguments."""
        return (*self.args, self.kwargs)

    def first(self, samples: int, network: nn.Module | None = None) -> Entry:
        """The same call with the first samples of its batch.

        Args:
            samples: How many.
            network: What is called: where it does not run on part of the batch, as on some nodes of a graph with all
                its edges, the call stays whole.
        """
        args, kwargs = first_samples((self.args, self.kwargs), samples)
        part = replace(self, args=args, kwargs=kwargs)
        return part if network is None or part.runs(network) else self

    def repeated(self, samples: int) -> Entry:
        """The same call with a batch of so many samples: those that there are, over and over."""
        batch = batch_size((self.args, self.kwargs))
        times = -(-samples // max(batch or 1, 1))

        def repeat(tensor: torch.Tensor) -> torch.Tensor:
            whole = tensor.ndim and tensor.shape[0] == batch
            return torch.cat([tensor] * times)[:samples] if whole else tensor

        args, kwargs = mapped((self.args, self.kwargs), repeat)
        return replace(self, args=args, kwargs=kwargs)

    def runs(self, network: nn.Module) -> bool:
        """Whether a module takes this call."""
        return self._outputs(network) is not None

    def with_inputs(self, example_inputs: Any, network: nn.Module) -> Entry:
        """The same module with inputs that the user gave.

        Args:
            example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments.
            network: The module.
        """
        args, kwargs = _copied(*call_arguments(example_inputs, network.forward))
        given = _arguments(network, args, kwargs)
        left_out = tuple(name for name in _arguments(network, self.args, self.kwargs) if name not in given)
        return replace(self, args=args, kwargs=kwargs, left_out=left_out)

    def without_labels(self, network: nn.Module) -> Entry:
        """The same call without labels, where the module gives its predictions without them.

        An argument is taken for labels if its name says so and the module runs without it.

        Args:
            network: The module; called in evaluation mode.
        """
        names = tuple(n for n in _arguments(network, self.args, self.kwargs) if _LABELS.fullmatch(n))
        shorter = replace(self, left_out=names)
        args, kwargs = shorter.passed(network, self.args, self.kwargs)
        shorter = replace(shorter, args=args, kwargs=kwargs)
        if not names or not (outputs := shorter._outputs(network)):
            return self
        return shorter if len(outputs) <= len(self._outputs(network) or {}) else self

    def passed(
        self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The part of a call of the steps that the exported one takes.

        Args:
            network: The module, or what stands for it.
            args: Positional arguments of the call.
            kwargs: Keyword arguments.
        """
        kwargs = {name: value for name, value in kwargs.items() if name not in self.left_out}
        signature = inspect.signature(network.forward)
        bound = signature.bind_partial(*args)
        if any(name in bound.arguments for name in self.left_out):
            given = {name: value for name, value in bound.arguments.items() if name not in self.left_out}
            bound.arguments.clear()
            bound.arguments.update(given)
            args, kwargs = bound.args, {**bound.kwargs, **kwargs}
        return args, kwargs

    def takes(self, network: nn.Module) -> Passed | None:
        """``passed`` as a function of a call's arguments; ``None`` where the exported call takes all of them."""
        return partial(self.passed, network) if self.left_out else None

    def _outputs(self, network: nn.Module) -> dict[str, torch.Tensor] | None:
        args, kwargs = mapped((self.args, self.kwargs), torch.clone)
        try:
            with evaluating(network), torch.random.fork_rng(devices=[]), torch.no_grad():
                return named_outputs(network(*args, **kwargs))
        except Exception:  # any network's own
            return None


def _arguments(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """Names of the parameters that a call passes, and of what it passes beyond them as keywords."""
    return list(dict.fromkeys([*inspect.signature(network.forward).bind_partial(*args).arguments, *kwargs]))


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
        self._calls: dict[str, Entry] = {}
        self._root = root
        self._field = field
        self._redirected = redirected
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

    @property
    def names(self) -> list[str]:
        """The outermost modules that were called, in order."""
        return list(self._calls)

    def entry(self) -> Entry:
        """What the step called.

        Raises:
            CompressionError: Nothing was called, or several modules side by side.
        """
        if not self._calls:
            raise CompressionError(
                f"{self._field}: the step called no module that has parameters, so there is nothing to export. Call "
                f"the network as a module (self(x) or self.net(x), not self.net.forward(x))."
            )
        for name, call in self._calls.items():
            if all(_is_part(other, name) for other in self._calls):
                # A module's own forward is what it predicts with; a loss may call parts of it besides.
                return call
        called = ", ".join(name or "self" for name in self._calls)
        raise CompressionError(
            f"{self._field}: the step calls several modules side by side ({called}), and one is exported as a "
            f"graph. Define forward and call self(x) in the steps{self._advice()}. The format 'packed' takes the "
            f"module whole."
        )

    def _advice(self) -> str:
        """The largest of the called modules that can be traced, tried here."""
        modules = {name: self._root.get_submodule(name) for name in self._calls if name}
        sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
        for name in sorted(sizes, key=lambda name: -sizes[name]):
            try:
                trace(modules[name], self._calls[name].example_inputs, field=self._field)
            except CompressionError:
                continue
            share = sizes[name] / max(1, sum(p.numel() for p in self._root.parameters()))
            return f", or give module={name!r} to export that part alone, which holds {share:.0%} of the parameters"
        return ""

    def _watch(self, name: str, module: nn.Module) -> tuple[torch.utils.hooks.RemovableHandle, ...]:
        def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name == "" and self._redirected and not self._stack:
                self._stack.append(None)
                return
            outermost = not any(caller is not None for caller in self._stack)
            self._stack.append(name)
            if outermost and name not in self._calls:
                kept = _copied(*_few(args, kwargs))
                self._calls[name] = Entry(name, *(in_float32(kept) if in_other_precision(self._root) else kept))

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
            self._stack.pop()

        # First among the hooks, so that the inputs are seen as they came.
        return (
            module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True),
            module.register_forward_hook(leave, always_call=True),
        )


def _is_part(name: str, whole: str) -> bool:
    """Whether a module is another one or a part of it, by their full names."""
    return whole in ("", name) or name.startswith(f"{whole}.")


def _few(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The first samples of a call, or all where a tensor may not be one row for each of them, as between all nodes."""
    batch = batch_size((args, kwargs))
    if any(batch in tensor.shape[1:] for _, tensor in tensors((args, kwargs))):
        return args, kwargs
    few: tuple[tuple[Any, ...], dict[str, Any]] = first_samples((args, kwargs), _SAMPLES)
    return few


def _copied(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Detached copies on the CPU."""
    # Tensors made under inference_mode would poison later training steps.
    with torch.inference_mode(False):
        copied: tuple[tuple[Any, ...], dict[str, Any]] = mapped((args, kwargs), lambda t: t.detach().cpu().clone())
    return copied
