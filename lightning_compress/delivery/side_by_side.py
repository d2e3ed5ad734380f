"""Evaluating a written file instead of the model, while the model runs on the same inputs for comparison."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn

from lightning_compress.delivery.call_sizes import CallSizes
from lightning_compress.delivery.evaluation import (
    EvaluationData,
    duplicate,
    evaluate,
    in_training_modes,
    integer_tensors,
)
from lightning_compress.delivery.network_call import Entry, Passed
from lightning_compress.export.signatures import completed
from lightning_compress.export.verification import Comparison
from lightning_compress.quantization import strip


@dataclass(frozen=True)
class AsTrained:
    """A module's own evaluation.

    Attributes:
        metrics: What the steps log.
        state: Where the module's hooks evaluate it in another state than eval mode (parts that stay in training mode,
            averaged weights), a copy that is in that state and stays in it.
        axes: Input of the exported module → dimensions whose sizes differ between calls, with a name.
    """

    metrics: dict[str, float]
    state: L.LightningModule | None
    axes: dict[str, dict[int, str]]


def evaluate_as_trained(module: L.LightningModule, data: EvaluationData, entry: Entry | None = None) -> AsTrained:
    """Run a module's own evaluation on a copy of it, as its fit does, all of its hooks included.

    Args:
        module: The module as trained; it is not changed.
        data: What to run on.
        entry: The call that is exported, where the sizes of its inputs are of interest.
    """
    copied = in_training_modes(duplicate(module), module, data.split)
    sizes = CallSizes()
    if entry is not None and entry.known:
        network = copied.get_submodule(entry.name)
        sizes.see(network.forward, entry.args, entry.kwargs)
        sizes.watch(network)
    states: list[L.LightningModule] = []

    def look(batch: Any) -> None:
        if not states:
            states.append(_fixed_copy(copied))

    metrics = evaluate(copied, data, on_batch=look)
    changed = states and (any(part.training for part in states[0].modules()) or not _same(states[0], module))
    return AsTrained(metrics, states[0] if changed else None, sizes.varying())


def _fixed_copy(module: L.LightningModule) -> L.LightningModule:
    """A copy whose parts keep the modes that they have."""
    copied = duplicate(module)
    for name, part in module.named_modules():
        if part.training:
            pinned = copied.get_submodule(name)
            pinned.training = True
            pinned.train = MethodType(_train, pinned)  # type: ignore[method-assign]
    return copied


def _train(module: nn.Module, mode: bool = True) -> nn.Module:
    """``nn.Module.train`` of a part that stays in training mode."""
    for child in module.children():
        child.train(mode)
    return module


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules of one architecture have equal tensors."""
    mine, theirs = one.state_dict(), duplicate(cast(L.LightningModule, other)).state_dict()
    return all(
        torch.equal(value.nan_to_num(), theirs[name].nan_to_num()) for name, value in mine.items() if name in theirs
    )


def evaluate_through(
    forward: Callable[..., Any],
    module: L.LightningModule,
    data: EvaluationData,
    *,
    entry: str = "",
    on_batch: Callable[[Any], None] | None = None,
) -> dict[str, float]:
    """What ``validation_step`` or ``test_step`` log with ``forward`` instead of a module's own.

    Args:
        forward: Takes the call's arguments.
        module: Whose steps run; it is not changed.
        data: What to run on.
        entry: Full name of the module that ``forward`` stands for.
        on_batch: Called with each batch before its step.
    """
    host = cast(L.LightningModule, strip(in_training_modes(duplicate(module), module, data.split)))
    return evaluate(host, data, entry=entry, forward=forward, on_batch=on_batch)


def evaluate_beside(
    form: Callable[..., Any],
    reference: Callable[..., Any],
    module: L.LightningModule,
    data: EvaluationData,
    *,
    entry: str = "",
    passed: Passed | None = None,
) -> tuple[dict[str, float], Comparison]:
    """Run ``validation_step`` or ``test_step`` with a written file inside.

    Args:
        form: Function of (the model's own output, the call's arguments), as ``deployed_form`` gives.
        reference: The model that the file was written from; it leaves its inputs as they are, as ``Remembered`` does.
        module: Whose steps run; it is not changed.
        data: What to run on.
        entry: Full name of the module that the file stands for.
        passed: The part of a call that the file takes, where the steps pass more, as ``Entry.takes`` gives it. What
            they log of results that need the rest, as a loss that the model computes of labels, is left out.

    Returns:
        What the steps log, and how far the file's outputs are from the model's.
    """
    beside = _Beside(form, reference, passed)
    metrics = evaluate_through(beside, module, data, entry=entry, on_batch=beside.next_batch)
    if passed is not None:
        metrics = {name: value for name, value in metrics.items() if not math.isnan(value)}
    return metrics, beside.comparison


class _Beside:
    """Runs a written file instead of the model, and the model for comparison."""

    def __init__(self, form: Callable[..., Any], reference: Callable[..., Any], passed: Passed | None) -> None:
        self.comparison = Comparison()
        self._form, self._reference, self._passed = form, reference, passed
        self._targets: list[Tensor] = []

    def next_batch(self, batch: Any) -> None:
        self._targets = integer_tensors(batch)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given, named = (args, kwargs) if self._passed is None else self._passed(args, kwargs)
        expected = _drawn_alike(self._reference, *given, **named)
        outputs = _drawn_alike(self._form, expected, *given, **named)
        self.comparison.update(outputs, expected, self._targets)
        return outputs if self._passed is None else completed(outputs, self._reference(*args, **kwargs))


def _drawn_alike(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A function's result where each call draws the same random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return function(*args, **kwargs)
