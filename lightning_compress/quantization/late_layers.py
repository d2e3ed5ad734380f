"""Layers that the recorded forward did not run: experts, dropped layers, heads of other tasks, branches."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lightning_compress.foundation.nested import mapped
from lightning_compress.foundation.recorded_forward import Tape
from lightning_compress.quantization.placement.sites import Placement
from lightning_compress.quantization.quantizers.weight import WeightQuantizer

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)

Call = tuple[tuple[Any, ...], dict[str, Any]]


class LateLayers:
    """Keeps the inputs of their first call in training, by which their activation quantizers can be placed.

    Args:
        model: The model.
        waiting: Names of the modules of quantized weights that did not run yet.
    """

    def __init__(self, model: nn.Module, waiting: Collection[str]) -> None:
        self.waiting = set(waiting)
        self._model = model
        self._calls: dict[str, Call] = {}

    def watch(self, layers: Collection[str]) -> list[RemovableHandle]:
        """Watch the modules in which all quantized layers wait; the outermost that is called counts.

        Args:
            layers: Names of all modules of quantized weights.
        """
        return [
            module.register_forward_pre_hook(_Enter(self, name).enter, with_kwargs=True)
            for name, module in self._model.named_modules()
            if name and not isinstance(module, _CONTAINERS) and self._waits(name, layers)
        ]

    def _waits(self, name: str, layers: Collection[str]) -> bool:
        inside = {layer for layer in layers if layer == name or layer.startswith(f"{name}.")}
        return bool(inside) and inside <= self.waiting

    def see(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep a call, if it is a first one in training."""
        if not self._model.training or torch.compiler.is_compiling() or not self._waits(name, self.waiting):
            return
        if not any(name == known or name.startswith(f"{known}.") for known in self._calls):
            self._calls[name] = mapped((args, kwargs), lambda tensor: tensor.detach().clone())

    def take(self) -> Iterator[tuple[nn.Module, Call]]:
        """The modules that were called since, each with its call."""
        calls, self._calls = self._calls, {}
        for name, call in calls.items():
            yield self._model.get_submodule(name), call

    def ran(self, tape: Tape) -> None:
        """Take those that a tape holds from the list."""
        self.waiting -= set(tape.calls)
        # The replay called them, too.
        self._calls = {name: call for name, call in self._calls.items() if name not in tape.calls}


class _Enter:
    """A hook that a copy of the model has for itself."""

    def __init__(self, late: LateLayers, name: str) -> None:
        self._late, self._name = late, name

    def enter(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._late.see(self._name, args, kwargs)


def ran(tape: Tape, model: nn.Module, weights: Collection[WeightQuantizer]) -> set[str]:
    """Names of the modules that a forward called, and of those whose weights another module read in their stead.

    Attention does so with its output projection.
    """
    names = {module: name for name, module in model.named_modules()}
    uses = (use for weight in weights for use in weight.uses)
    return set(tape.calls) | {names[use.owner] for use in uses if names[use.host] in tape.calls}


def addition(known: Placement, found: Placement) -> Placement:
    """What of a later placement is new: no boundary, layer or norm of the first has two quantizers."""
    taken = {boundary for site in known.sites for boundary in site.boundaries}
    sites = tuple(site for site in found.sites if not taken & set(site.boundaries))
    names = {site.name for site in sites}
    return Placement(
        sites=sites,
        layer_input={w: s for w, s in found.layer_input.items() if w not in known.layer_input and s in names},
        folds={layer: norm for layer, norm in found.folds.items() if layer not in known.folds},
        unreached=tuple(line for line in found.unreached if line not in known.unreached),
    )


def merged(known: Placement, more: Placement) -> Placement:
    """Both placements in one."""
    return replace(
        known,
        sites=(*known.sites, *more.sites),
        layer_input={**known.layer_input, **more.layer_input},
        folds={**known.folds, **more.folds},
        unreached=(*known.unreached, *more.unreached),
    )
