"""Keeps an optimizer's state zero where its weights are pruned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import LBFGS, SGD, Adadelta, Adagrad, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

from lightning_compress.foundation.shards import local
from lightning_compress.pruning.masks import apply_masks

GRADIENT_DECIDES = (SGD, Adam, AdamW, Adagrad, Adadelta, NAdam, RAdam, RMSprop, LBFGS)
"""Optimizers that leave an entry at zero once its weight, gradient and state are zero.

A test runs each of them. For these it is enough to mask gradients, one pass instead of one for the weights and one
for every moment. Subclasses may do anything, so they do not count.
"""


def gradient_decides(optimizer: Optimizer) -> bool:
    """Whether zero gradients keep pruned entries at zero."""
    return type(optimizer) in GRADIENT_DECIDES


def owned(optimizer: Optimizer, masks: Mapping[Tensor, Tensor]) -> list[Tensor]:
    """The masked parameters that an optimizer steps, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"] if p in masks]


@torch.no_grad()
def mask_gradients(optimizer: Optimizer, masks: Mapping[Tensor, Tensor]) -> bool:
    """Zero the gradients of pruned entries.

    Returns:
        Whether all gradients could be masked; sparse ones cannot.
    """
    gradients = [(local(p.grad), masks[p]) for p in owned(optimizer, masks) if p.grad is not None]
    if any(gradient.layout != torch.strided for gradient, _ in gradients):
        return False
    apply_masks([gradient for gradient, _ in gradients], [mask for _, mask in gradients])
    return True


@torch.no_grad()
def mask_weights_and_state(optimizer: Optimizer, masks: Mapping[Tensor, Tensor]) -> None:
    """Zero weights and every state tensor of the weight's shape where entries are pruned."""
    for parameter in owned(optimizer, masks):
        tensors = [local(parameter.detach())]
        tensors += [
            local(value)
            for value in optimizer.state.get(parameter, {}).values()
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point()
        ]
        apply_masks(tensors, [masks[parameter]] * len(tensors))


def forget_pruned(optimizer: Optimizer, masks: Mapping[Tensor, Tensor]) -> None:
    """After masks changed: zero the state of what is pruned now.

    L-BFGS keeps its history as flat vectors over all parameters; its curvature was measured with weights that are
    gone, so it starts over.
    """
    if isinstance(optimizer, LBFGS):
        if owned(optimizer, masks):
            optimizer.state.clear()
        return
    mask_weights_and_state(optimizer, masks)
