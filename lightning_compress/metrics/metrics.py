"""The metrics as ``torchmetrics.Metric``: ``update(model)``, then ``compute()``.

A model is the same on every rank, so a metric that is updated and computed on all ranks keeps its value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_compress.errors import CompressionError
from lightning_compress.metrics import functional
from lightning_compress.metrics.layer_table import LayerRow, describe
from lightning_compress.metrics.macs import count_macs

if TYPE_CHECKING:
    from lightning_compress.pruning import Pruner


class _ModelMetric(Metric):
    """A number that is read off the last model given."""

    full_state_update = True
    is_differentiable = False
    value: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # float64: bit operations and bytes of large models are not exact in float32.
        self.add_state("value", torch.tensor(torch.nan, dtype=torch.float64), dist_reduce_fx="max")
        self.set_dtype(torch.float64)

    def update(self, model: nn.Module) -> None:
        """Read the number off a model."""
        self.value = torch.tensor(self._read(model), dtype=torch.float64, device=self.device)

    def compute(self) -> Tensor:
        """The number: float64, ``[]``."""
        return self.value

    def _read(self, model: nn.Module) -> float:
        raise NotImplementedError


class Sparsity(_ModelMetric):
    """Share of zeros over all prunable weights.

    Args:
        pruner: The model's pruner: then its parameters are the prunable weights. Otherwise every layer's weight is.
        **kwargs: Passed to ``torchmetrics.Metric``.

    Example:
        >>> fc = nn.Linear(4, 2)
        >>> _ = nn.init.zeros_(fc.weight[0])
        >>> metric = Sparsity()
        >>> metric.update(fc)
        >>> metric.compute().item()
        0.5
    """

    higher_is_better = True

    def __init__(self, pruner: Pruner | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._pruner = pruner

    def _read(self, model: nn.Module) -> float:
        return functional.sparsity(describe(model, pruner=self._pruner))


class WeightBits(_ModelMetric):
    """Mean bits of a weight, over all entries of the layers' weights.

    Example:
        >>> metric = WeightBits()
        >>> metric.update(nn.Linear(4, 2))
        >>> metric.compute().item()
        32.0
    """

    higher_is_better = False

    def _read(self, model: nn.Module) -> float:
        return functional.weight_bits(describe(model))


class ModelSize(_ModelMetric):
    """Bytes of a model: ``"dense"`` in float32, or ``"packed"``, an estimate of the packed file from entropy.

    Args:
        form: Which of the two.
        **kwargs: Passed to ``torchmetrics.Metric``.

    Raises:
        CompressionError: The form is another.

    Example:
        >>> metric = ModelSize("dense")
        >>> metric.update(nn.Linear(4, 2))
        >>> metric.compute().item()
        40.0
    """

    higher_is_better = False

    def __init__(self, form: Literal["dense", "packed"] = "packed", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if form not in ("dense", "packed"):
            raise CompressionError.field("ModelSize.form", expected="'dense' or 'packed'", got=form)
        self._form = form

    def _read(self, model: nn.Module) -> float:
        rows, extra = describe(model), functional.extra_bytes(model)
        size = functional.dense_bytes if self._form == "dense" else functional.packed_bytes
        return float(size(rows, extra))


class BitOperations(_ModelMetric):
    """Bit operations of one forward: multiply-accumulates × weight bits × activation bits (Baskin et al. 2018).

    Args:
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments for the forward; one sample
            gives bit operations per sample.
        **kwargs: Passed to ``torchmetrics.Metric``.

    Example:
        >>> metric = BitOperations(torch.zeros(1, 4))
        >>> metric.update(nn.Linear(4, 2))
        >>> metric.compute().item()
        8192.0
    """

    higher_is_better = False

    def __init__(self, example_inputs: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._example_inputs = example_inputs

    def _read(self, model: nn.Module) -> float:
        macs = count_macs(model, self._example_inputs)
        rows: list[LayerRow] = describe(model, macs=macs)
        return functional.bit_operations(rows, macs.products) or 0.0
