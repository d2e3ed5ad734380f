"""A ``training_step`` that learns from a teacher, put on a module for the time of a fit."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import lightning as L

_STEP = "training_step"

Distill = Callable[[MethodType, L.Trainer, L.LightningModule, Any, Any], Any]
"""Runs a step with its positional and keyword arguments, and adds the teacher's losses to what it returns."""


class DistilledStep:
    """Stands in for a module's ``training_step`` during a fit.

    Wrapping the step, rather than adding to the loss in ``on_before_backward``, puts the teacher and its losses inside
    the Trainer's precision context and inside the wrapper of DDP, which looks through the returned loss for
    parameters without gradients.
    """

    def __init__(self, distill: Distill, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._distill = distill
        self._trainer, self._module = trainer, module
        self._before = {_STEP: module.__dict__[_STEP]} if _STEP in module.__dict__ else {}
        # Lightning looks here for the signature.
        self.__wrapped__ = getattr(module, _STEP)

    @classmethod
    def install(cls, distill: Distill, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Put it on a module."""
        module.__dict__[_STEP] = cls(distill, trainer, module)

    @classmethod
    def remove(cls, module: L.LightningModule) -> None:
        """Give a module its own step back, if it has another now."""
        step = module.__dict__.get(_STEP)
        if isinstance(step, cls):
            del module.__dict__[_STEP]
            module.__dict__.update(step._before)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The distilled step."""
        return self._distill(self.__wrapped__, self._trainer, self._module, args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the module, or one in a file, has its own step.
        return _own_step, (self._module,)


def _own_step(module: L.LightningModule) -> MethodType:
    return MethodType(type(module).training_step, module)
