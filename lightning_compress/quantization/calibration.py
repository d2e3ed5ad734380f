"""Post-training quantization: ranges, batch-norm statistics and biases of a trained network from a few batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.example_inputs import call_arguments, evaluating
from lightning_compress.foundation.recorded_forward import recording
from lightning_compress.quantization.attach import Quantization, install, strip
from lightning_compress.quantization.equalization import equalize as equalize_layers
from lightning_compress.quantization.placement.batch_norm import NORMS
from lightning_compress.quantization.quantizers.activation import ActivationQuantizer
from lightning_compress.quantization.quantizers.searched import SearchedWeightQuantizer
from lightning_compress.quantization.quantizers.weight import WeightQuantizer
from lightning_compress.quantization.ranges import observers
from lightning_compress.quantization.settings import QuantizationSettings

__all__ = ["calibrate"]

_LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip

Call = Callable[[nn.Module, Any], Any]
"""Runs a model on one batch."""


def calibrate(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    call: Call | None = None,
    bias_correction: bool = True,
    batchnorm: bool = False,
    equalize: bool = False,
    **settings: Any,
) -> nn.Module:
    """Quantize a trained model without training it, in place, in evaluation mode and without gradients.

    1. With ``equalize``, consecutive layers are rescaled so that their channels have equal ranges (Nagel et al. 2019,
       section 4.1), which changes nothing that the network computes.
    2. Weights are quantized, and every activation's range is the mean of its ranges in the batches: smallest and
       largest value, percentiles, or the part of them with the least squared error, as ``range`` says.
    3. With ``batchnorm``, running statistics are measured again on the quantized network, as cumulative averages over
       the batches.
    4. With ``bias_correction``, the mean error that rounded weights make in each output channel of a linear layer or a
       convolution, ``E[(Wq - W) x]``, is taken from the layer's bias, or from the mean of the batch norm that folds
       into it (Nagel et al. 2019, equation 17). A layer that has neither keeps its error.

    The model can be exported then, or trained on with the ranges that were found. Class, Parameters and ``state_dict``
    keys stay as they are, float weights too but for ``equalize``; biases and batch-norm statistics change.

    Args:
        model: A trained model.
        batches: Inputs: each a tensor, a tuple of arguments or a dict of keyword arguments. They are read several
            times.
        call: Runs the model on a batch, where a batch is not the inputs alone: ``lambda model, batch:
            model(batch[0])``.
        bias_correction: Whether biases make up for the mean error of rounded weights.
        batchnorm: Whether batch-norm statistics are measured again.
        equalize: Whether consecutive layers get equal ranges of each channel.
        **settings: The fields of ``QuantizationSettings``; ``range="learned"`` needs training.

    Returns:
        The same model, in the modes that it had.

    Raises:
        CompressionError: There is no batch, a setting is not allowed, nothing can be quantized, or the model is
            quantized already. The model is as it was then.

    Example:
        >>> from lightning_compress.quantization import find
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> net = calibrate(net, [torch.randn(16, 4) for _ in range(4)], weight_bits=8)
        >>> all(q.observed for q in find(net).activations.values())
        True
    """
    wanted = QuantizationSettings(**{"field": "calibrate", **settings})
    if wanted.range == "learned":
        raise CompressionError.field(
            f"{wanted.field}.range",
            expected="minmax, percentile or mse",
            got=wanted.range,
            fix="Learned ranges are learned by training: use prepare or QuantizationAwareTraining.",
        )
    if not len(batches):
        raise CompressionError.field(f"{wanted.field}.batches", expected="at least one batch", got="none")
    run = _forward if call is None else call
    kept = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    quantization = install(model, wanted)
    try:
        with evaluating(model), torch.no_grad():
            _place(quantization, run, batches[0], equalized=equalize)
            _find_ranges(quantization, run, batches)
            if batchnorm:
                _measure_batchnorm(model, run, batches, wanted.field)
            if bias_correction:
                _correct_biases(quantization, run, batches, norms=not batchnorm)
    except BaseException:
        strip(model)
        model.load_state_dict(kept, strict=False)
        raise
    return model


def _forward(model: nn.Module, batch: Any) -> Any:
    args, kwargs = call_arguments(batch, model.forward)
    return model(*args, **kwargs)


def _place(quantization: Quantization, run: Call, batch: Any, *, equalized: bool) -> None:
    """Place the activation quantizers by one forward in float, which shows layers to equalize as well."""
    quantization.enabled = False
    with recording(quantization.root) as tape:
        run(quantization.root, batch)
    quantization.enabled = True
    quantization.place(tape)
    if equalized and quantization.placement is not None:
        equalize_layers(quantization.root, tape, quantization.placement.folds)


def _find_ranges(quantization: Quantization, run: Call, batches: Sequence[Any]) -> None:
    """Set each range to the mean of what the batches showed; activations pass in float meanwhile."""
    searched = [q for q in quantization.layers.values() if isinstance(q, SearchedWeightQuantizer)]
    if searched:
        SearchedWeightQuantizer.search(searched)
    seen: dict[ActivationQuantizer, list[torch.Tensor]] = {q: [] for q in quantization.activations.values()}

    def look(quantizer: ActivationQuantizer, x: torch.Tensor) -> None:
        if x.numel():
            method, bits = quantizer.spec.range, quantizer.bits
            seen[quantizer].append(observers.observe(x.detach(), method, bits, symmetric=quantizer.symmetric))

    for quantizer in seen:
        quantizer.watch = look
    try:
        for batch in batches:
            run(quantization.root, batch)
    finally:
        for quantizer in seen:
            quantizer.watch = None
    for quantizer, ranges in seen.items():
        finite = [one for one in ranges if bool(one.isfinite().all())]
        quantizer.nonfinite += len(ranges) - len(finite)
        if finite:
            quantizer.range.copy_(torch.stack(finite).mean(0))
            quantizer.update_scale()
            quantizer.observed = True


def _measure_batchnorm(model: nn.Module, run: Call, batches: Sequence[Any], field: str) -> None:
    """Replace running statistics by cumulative averages over the batches; norms that no batch reaches keep theirs."""
    norms = [m for m in model.modules() if isinstance(m, NORMS) and m.track_running_stats]
    before = {norm: {name: value.clone() for name, value in norm.named_buffers()} for norm in norms}
    momenta = {norm: norm.momentum for norm in norms}
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True
    try:
        for batch in batches:
            run(model, batch)
    except ValueError as error:
        raise CompressionError(
            f"{field}.batchnorm: batch-norm statistics cannot be measured on these batches: {error} Give larger ones."
        ) from error
    finally:
        for norm in norms:
            norm.momentum, norm.training = momenta[norm], False
            if not norm.num_batches_tracked:
                norm.load_state_dict(before[norm], strict=False)


def _correct_biases(quantization: Quantization, run: Call, batches: Sequence[Any], *, norms: bool) -> None:
    """Take the mean error of rounded weights from each output channel.

    Args:
        quantization: What is attached to the model.
        run: Runs it.
        batches: What on.
        norms: Whether to correct layers whose batch norm folds; their statistics hold the error once measured again.
    """
    layers = _correctable(quantization, norms=norms)
    inputs: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []

    def keep(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        inputs.append((layer, args, kwargs))

    handles = [layer.register_forward_hook(keep, with_kwargs=True) for layer in layers]
    totals: dict[nn.Module, torch.Tensor] = {}
    counts = dict.fromkeys(layers, 0)
    try:
        for batch in batches:
            run(quantization.root, batch)
            seen = list(inputs)
            # Before the layers are called by themselves, which would be kept, too.
            quantization.enabled = False
            for layer, args, kwargs in seen:
                error = _error(layer, layers[layer][0], args, kwargs)
                totals[layer] = totals.get(layer, 0.0) + error.sum(0)
                counts[layer] += len(error)
            quantization.enabled = True
            inputs.clear()
    finally:
        quantization.enabled = True
        for handle in handles:
            handle.remove()
    for layer, total in totals.items():
        bias, sign = layers[layer][1:]
        bias.add_((sign * total / max(counts[layer], 1)).to(bias.dtype))


def _correctable(
    quantization: Quantization, *, norms: bool
) -> dict[nn.Module, tuple[WeightQuantizer, torch.Tensor, float]]:
    """Layer → quantizer of its weight, what takes the correction, and the sign with which it does."""
    modules = dict(quantization.root.named_modules())
    names = {module: name for name, module in modules.items()}
    folds = quantization.placement.folds if quantization.placement else {}
    found: dict[nn.Module, tuple[WeightQuantizer, torch.Tensor, float]] = {}
    for quantizer in quantization.layers.values():
        for use in quantizer.uses:
            layer = use.host
            if not isinstance(layer, _LAYERS) or use.owner is not layer or use.attribute != "weight":
                continue
            norm = modules[folds[names[layer]]] if names[layer] in folds else None
            if norm is not None:
                mean = norm._buffers["running_mean"]
                if norms and mean is not None:
                    found[layer] = (quantizer, mean, 1.0)
            elif isinstance(layer.bias, nn.Parameter):
                found[layer] = (quantizer, layer.bias, -1.0)
    return found


def _error(layer: nn.Module, quantizer: WeightQuantizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """What rounding the weight adds to a layer's output: float64, ``[values, channels]``."""
    weights = (quantizer.fake_quantize(), quantizer.weight)
    rounded, exact = (functional_call(layer, {"weight": weight}, args, kwargs).double() for weight in weights)
    axis = -1 if isinstance(layer, nn.Linear) else 1 - quantizer.weight.ndim
    return (rounded - exact).movedim(axis, -1).flatten(0, -2)
