"""Attach quantization to a model and take it off again: the plain-loop interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.quantization.model import Quantization
from lightning_compress.quantization.settings import QuantizationSettings
from lightning_compress.quantization.wiring import ATTRIBUTE

__all__ = ["Quantization", "attach", "find", "install", "prepare", "strip"]


def prepare(model: nn.Module, *, example_inputs: Any = None, **settings: Any) -> nn.Module:
    """Attach quantization-aware training to a model, in place.

    From here on every training forward fake-quantizes weights and activations and learns the ranges; the model's
    class, Parameters and ``state_dict`` keys stay as they are. ``find(model)`` gives the quantizers.

    Args:
        model: The model.
        example_inputs: A tensor, a tuple of arguments or a dict of keyword arguments for one forward, which is
            recorded to place the activation quantizers. Needed unless ``activation_bits`` is ``None``.
        **settings: The fields of ``QuantizationSettings``.

    Returns:
        The same model.

    Raises:
        CompressionError: A setting is not allowed, nothing can be quantized, or the model is prepared already.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> net = prepare(net, weight_bits=8, activation_bits=8, example_inputs=torch.randn(1, 4))
        >>> sorted(find(net).activations)
        ['0:input[0]', '1:output']
    """
    quantization = install(model, QuantizationSettings(**settings))
    if example_inputs is not None:
        try:
            quantization.record(example_inputs)
        except BaseException:
            strip(model)
            raise
    elif quantization.needs_recording:
        strip(model)
        raise CompressionError.field(
            f"{quantization.settings.field}.example_inputs",
            expected="inputs for one forward, to find where activations are quantized",
            got=None,
            fix="Give example_inputs=..., or activation_bits=None to quantize weights alone.",
        )
    return model


def install(model: nn.Module, settings: QuantizationSettings) -> Quantization:
    """Attach the weight quantizers; activations follow with ``record``, ``place`` or ``load_state_dict``.

    Args:
        model: The model, changed in place.
        settings: What is quantized, and how.

    Raises:
        CompressionError: The model is prepared already, or nothing in it can be quantized.
    """
    if find(model) is not None:
        raise CompressionError(
            f"{settings.field}: {type(model).__name__} is quantized already: strip(model) before preparing it again."
        )
    quantization = Quantization(model, settings)
    model.__dict__[ATTRIBUTE] = quantization
    return quantization


def attach(model: nn.Module, state: Mapping[str, Any]) -> Quantization:
    """Attach the quantization that ``Quantization.state_dict`` described, with its weight scales fixed.

    For weights that lie on their grid already (loaded artifacts): quantizing again changes nothing.

    Args:
        model: The model, changed in place.
        state: What ``Quantization.state_dict`` returned.

    Raises:
        CompressionError: The state is of another model.
    """
    settings = QuantizationSettings(**state["settings"])
    quantization = install(model, settings)
    quantization.load_state_dict(state)
    for name, scale in state["weight_scales"].items():
        quantization.layers[name].fixed_scale = scale
    return quantization


def find(model: nn.Module) -> Quantization | None:
    """The quantization attached to a model, to one of its submodules, or to what it is a part of, if any.

    Args:
        model: The model.
    """
    for module in model.modules():
        if ATTRIBUTE in module.__dict__:
            return module.__dict__[ATTRIBUTE]
    return None


def strip(model: nn.Module) -> nn.Module:
    """Remove every trace of quantization, in place; the weights stay the float ones.

    Args:
        model: The model.

    Returns:
        The same model.
    """
    while (quantization := find(model)) is not None:
        quantization.detach()
    return model
