"""Running a model on example inputs, and comparing the outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.foundation import pytree
from lightning_compress.foundation.example_inputs import call_arguments, evaluating


def call(model: nn.Module, example_inputs: Any) -> Any:
    """Call a model on example inputs: a tensor, a tuple of arguments or a dict of keyword arguments."""
    args, kwargs = call_arguments(example_inputs)
    return model(*args, **kwargs)


def to_device(model: nn.Module, example_inputs: Any) -> Any:
    """Move example inputs to the model's device."""
    device = next(model.parameters()).device
    return pytree.tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, example_inputs)


@torch.no_grad()
def outputs(model: nn.Module, example_inputs: Any) -> list[Tensor]:
    """All tensors of a model's output in evaluation mode; modes come back."""
    with evaluating(model):
        result = call(model, to_device(model, example_inputs))
    return [leaf.detach() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def differ(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Largest difference between two outputs, relative to the largest value of the first."""
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        if a.shape != b.shape:
            return math.inf
        if a.is_floating_point() and a.numel():
            scale = float(a.double().abs().max()) or 1.0
            worst = max(worst, float((a.double() - b.double()).abs().max()) / scale)
    return worst if not math.isnan(worst) else math.inf
