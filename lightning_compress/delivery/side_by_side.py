"""Evaluating a written file in the place of the model, with the model itself running beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import lightning as L
from torch import Tensor

from lightning_compress.delivery.evaluation import EvaluationData, duplicate, evaluate, integer_tensors
from lightning_compress.export.verification import Comparison
from lightning_compress.quantization import strip


def evaluate_through(
    forward: Callable[..., Any],
    module: L.LightningModule,
    data: EvaluationData,
    *,
    entry: str = "",
    on_batch: Callable[[Any], None] | None = None,
) -> dict[str, float]:
    """What ``validation_step`` or ``test_step`` log with ``forward`` in the place of a module's own.

    Args:
        forward: Takes the call's arguments.
        module: Whose steps run; it is not changed.
        data: What to run on.
        entry: Full name of the module that ``forward`` stands for.
        on_batch: Called with each batch before its step.
    """
    host = cast(L.LightningModule, strip(duplicate(module)))
    return evaluate(host, data, entry=entry, forward=forward, on_batch=on_batch)


def evaluate_beside(
    form: Callable[..., Any],
    reference: Callable[..., Any],
    module: L.LightningModule,
    data: EvaluationData,
    *,
    entry: str = "",
) -> tuple[dict[str, float], Comparison]:
    """Run ``validation_step`` or ``test_step`` with a written file inside.

    Args:
        form: Function of (the model's own output, the call's arguments), as ``deployed_form`` gives.
        reference: The model that the file was written from; it leaves its inputs as they are, as ``Remembered`` does.
        module: Whose steps run; it is not changed.
        data: What to run on.
        entry: Full name of the module that the file stands for.

    Returns:
        What the steps log, and how far the file's outputs are from the model's.
    """
    beside = _Beside(form, reference)
    metrics = evaluate_through(beside, module, data, entry=entry, on_batch=beside.next_batch)
    return metrics, beside.comparison


class _Beside:
    """Runs a written file in the place of the model, and the model beside it."""

    def __init__(self, form: Callable[..., Any], reference: Callable[..., Any]) -> None:
        self.comparison = Comparison()
        self._form, self._reference = form, reference
        self._targets: list[Tensor] = []

    def next_batch(self, batch: Any) -> None:
        self._targets = integer_tensors(batch)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        expected = self._reference(*args, **kwargs)
        outputs = self._form(expected, *args, **kwargs)
        self.comparison.update(outputs, expected, self._targets)
        return outputs
