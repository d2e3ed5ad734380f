"""``model.safetensors`` and ``config.json`` in the form of the compressed-tensors project, which vLLM and others read.

Linear layers hold integers: in a byte each (``int-quantized``), or packed into int32 words (``pack-quantized``) where
inputs stay float and weights have 4 or 8 bits. The quantizers of a layer's input are written as its
``input_activations``. All else is stored in float, with the values that were trained on.

Format: https://github.com/vllm-project/compressed-tensors, read in release 0.20.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_compress.errors import CompressionError
from lightning_compress.export.compressed_tensors.int32_words import pack, unpack
from lightning_compress.foundation.atomic_write import replacing
from lightning_compress.quantization import find
from lightning_compress.quantization.attach import Quantization
from lightning_compress.quantization.quantizers.activation import ActivationQuantizer
from lightning_compress.quantization.quantizers.weight import WeightQuantizer

CONFIG = "config.json"
_PACKED_BITS = (4, 8)

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class CompressedTensorsFile:
    """A written checkpoint.

    Attributes:
        path: The ``.safetensors`` file.
        config: The ``config.json`` beside it.
        bytes: Size of both.
        integer_layers: Names of the layers that are stored as integers.
        float_weights: Names of weights under quantization that the format has no integers for.
    """

    path: Path
    config: Path
    bytes: int
    integer_layers: tuple[str, ...]
    float_weights: tuple[str, ...]


@dataclass
class _Checkpoint:
    tensors: dict[str, Tensor]
    groups: dict[str, tuple[dict[str, Any], list[str]]] = field(default_factory=dict)


def save_compressed_tensors(model: nn.Module, path: str | Path) -> CompressedTensorsFile:
    """Write the Linear layers of a quantized model as integers, and the rest in float.

    Args:
        model: A model under quantization; it is not changed. Where it has a ``config`` with ``to_dict``, as models of
            transformers do, that becomes part of ``config.json``.
        path: A file that ends in ``.safetensors``; replaced atomically. ``config.json`` is written beside it.

    Raises:
        CompressionError: The model has no Linear layer under quantization, a group does not divide the inputs, or
            nothing can be written.

    Example:
        >>> import tempfile
        >>> from lightning_compress.quantization import prepare
        >>> net = prepare(nn.Sequential(nn.Linear(8, 4)), weight_bits=4, activation_bits=None)
        >>> save_compressed_tensors(net, Path(tempfile.mkdtemp()) / "model.safetensors").integer_layers
        ('0',)
    """
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != ".safetensors":
        raise CompressionError.field(
            "save_compressed_tensors.path", expected="a file that ends in .safetensors", got=str(path)
        )
    quantization = find(model)
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    if quantization is not None:
        quantization.synchronize()
    layers = {} if quantization is None else _linear_layers(quantization, names)
    if quantization is None or not layers:
        raise CompressionError(
            "save_compressed_tensors: the model has no Linear layer under quantization, and the format holds no "
            "others. Write 'packed' or 'onnx'."
        )
    checkpoint = _Checkpoint(_float_state(model))
    stays = [name for name, q in quantization.layers.items() if not any(q is other for other, _ in layers.values())]
    quantizers = {quantizer.weight: quantizer for quantizer in quantization.layers.values()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter in quantizers:
            checkpoint.tensors[name] = quantizers[parameter].fake_quantize().detach().float().cpu().contiguous()
    for bias in quantization.biases:
        for owner in names.get(bias.owner, ()):
            name = f"{owner}.{bias.attribute}"
            if name in checkpoint.tensors:
                checkpoint.tensors[name] = bias.rounded().detach().float().cpu().contiguous()
    for name, (quantizer, inputs) in sorted(layers.items()):
        _store(checkpoint, name, quantizer, inputs)
    ignored = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in layers]
    config = path.with_name(CONFIG)
    text = json.dumps({**_own_config(model), "quantization_config": _config(checkpoint, ignored)}, indent=2) + "\n"
    data = save(checkpoint.tensors, metadata={"format": "pt"})
    for target, content in ((path, data), (config, text.encode())):
        with replacing(target) as temporary:
            temporary.write_bytes(content)
    size = path.stat().st_size + config.stat().st_size
    return CompressedTensorsFile(path, config, size, tuple(sorted(layers)), tuple(sorted(stays)))


def load_compressed_tensors(path: str | Path, model: Model) -> Model:
    """Load such a checkpoint into a model of the same structure, with inputs quantized as the file says.

    Args:
        path: The ``.safetensors`` file; ``config.json`` lies beside it.
        model: A plain model; it is changed, and returned.

    Raises:
        CompressionError: Either file is missing or damaged, or does not fit the model.
    """
    tensors, groups = _read(Path(path))
    state = dict(tensors)
    modules = dict(model.named_modules(remove_duplicate=False))
    inputs: dict[str, Mapping[str, Any]] = {}
    for scheme in groups.values():
        for name in scheme["targets"]:
            state[f"{name}.weight"] = _weight(Path(path), state, name, scheme["weights"])
            if scheme.get("input_activations"):
                inputs[name] = scheme["input_activations"]
    grids = {
        name: (float(state.pop(f"{name}.input_scale")), int(state.pop(f"{name}.input_zero_point"))) for name in inputs
    }
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CompressionError(
            f"{path}: does not fit {type(model).__name__}: {' '.join(str(error).split())}"
        ) from error
    # A module that goes by several names has one input.
    for module, grid in {modules[name]: grid for name, grid in grids.items()}.items():
        module.register_forward_pre_hook(_InputGrid(*grid))
    return model


class _InputGrid:
    """Rounds a layer's input to int8 with a zero point."""

    def __init__(self, scale: float, zero_point: int) -> None:
        self.scale, self.zero_point = scale, zero_point

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        integers = torch.clamp(torch.round(args[0] / self.scale) + self.zero_point, -128, 127)
        return ((integers - self.zero_point) * self.scale, *args[1:])


def _linear_layers(
    quantization: Quantization, names: Mapping[nn.Module, Sequence[str]]
) -> dict[str, tuple[WeightQuantizer, ActivationQuantizer | None]]:
    found = {}
    for weight, quantizer in quantization.layers.items():
        site = quantization.layer_input.get(weight)
        inputs = quantization.activations[site] if site is not None else None
        for use in quantizer.uses:
            if isinstance(use.owner, nn.Linear) and use.host is use.owner and use.attribute == "weight":
                found.update(dict.fromkeys(names.get(use.owner, ()), (quantizer, inputs)))
    return found


def _float_state(model: nn.Module) -> dict[str, Tensor]:
    seen: set[int] = set()
    state = {}
    for name, value in model.state_dict().items():
        own = value.detach().cpu().contiguous()
        # Tied tensors come under each of their names: a plain load_state_dict wants them all.
        state[name] = own.clone() if value.data_ptr() in seen else own
        seen.add(value.data_ptr())
    return state


def _store(checkpoint: _Checkpoint, name: str, quantizer: WeightQuantizer, inputs: ActivationQuantizer | None) -> None:
    weight = quantizer.quantized()
    bits, group = weight.bits, weight.group_size
    integers, scale = weight.integers.cpu(), weight.scale.float().cpu().clone()
    if group and integers.shape[1] % group:
        raise CompressionError(
            f"save_compressed_tensors: {name}: groups of {group} do not divide its {integers.shape[1]} inputs, which "
            f"the format asks for. Choose a divisor, or 'channel', in overrides."
        )
    tensors = checkpoint.tensors
    strategy = "group" if group else "channel" if scale.ndim else "tensor"
    tensors[f"{name}.weight_scale"] = scale.reshape(-1, 1) if strategy == "channel" else scale.reshape(scale.shape or 1)
    packed = inputs is None and bits in _PACKED_BITS and strategy != "tensor"
    del tensors[f"{name}.weight"]
    if packed:
        tensors[f"{name}.weight_packed"] = pack(integers, bits)
        tensors[f"{name}.weight_shape"] = torch.tensor(integers.shape)
    else:
        tensors[f"{name}.weight"] = integers
    scheme: dict[str, Any] = {
        "weights": _arguments(bits, strategy, group_size=group),
        "input_activations": None,
        "output_activations": None,
        "format": "pack-quantized" if packed else "int-quantized",
    }
    if inputs is not None:
        # int8, as their kernels have it.
        shift = 128 if inputs.qmin >= 0 else 0
        if inputs.bits != 8:
            raise CompressionError(
                f"save_compressed_tensors: {name}: its input has {inputs.bits} bits, and the format's kernels read 8. "
                f"Train with activation_bits=8 or None."
            )
        tensors[f"{name}.input_scale"] = inputs.scale.detach().float().cpu().reshape(1).clone()
        tensors[f"{name}.input_zero_point"] = (inputs.zero_point.detach().cpu() - shift).to(torch.int8).reshape(1)
        scheme["input_activations"] = _arguments(8, "tensor", symmetric=inputs.symmetric)
    checkpoint.groups.setdefault(json.dumps(scheme), (scheme, []))[1].append(name)


def _arguments(bits: int, strategy: str, *, symmetric: bool = True, group_size: int | None = None) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": group_size,
        "dynamic": False,
    }


def _config(checkpoint: _Checkpoint, ignored: list[str]) -> dict[str, Any]:
    groups = {
        f"group_{k}": {**scheme, "targets": names} for k, (scheme, names) in enumerate(checkpoint.groups.values())
    }
    formats = {scheme["format"] for scheme in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignored,
    }


def _own_config(model: nn.Module) -> dict[str, Any]:
    describe = getattr(getattr(model, "config", None), "to_dict", None)
    described = describe() if callable(describe) else {}
    if described and not described.get("architectures"):
        described["architectures"] = [type(model).__name__]
    return dict(described)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads(path.with_name(CONFIG).read_text(encoding="utf-8"))["quantization_config"]
        if config["quant_method"] != "compressed-tensors" or config["quantization_status"] != "compressed":
            raise ValueError("quant_method or quantization_status is another")
        groups = dict(config["config_groups"])
        for scheme in groups.values():
            _check(scheme)
        return load_file(path), groups
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CompressionError(
            f"{path}: cannot be read as a compressed-tensors checkpoint of this package ({type(error).__name__}: "
            f"{' '.join(str(error).split())}). {CONFIG} must lie beside it."
        ) from error


def _check(scheme: Mapping[str, Any]) -> None:
    weights, inputs = scheme["weights"], scheme.get("input_activations")
    known = weights["type"] == "int" and weights["symmetric"] is True and 2 <= int(weights["num_bits"]) <= 8
    static = inputs is None or (inputs["num_bits"], inputs["strategy"], inputs["dynamic"]) == (8, "tensor", False)
    if not (known and static and all(isinstance(name, str) for name in scheme["targets"])):
        raise ValueError("a scheme that save_compressed_tensors does not write")


def _weight(path: Path, state: dict[str, Tensor], name: str, weights: Mapping[str, Any]) -> Tensor:
    try:
        scale = state.pop(f"{name}.weight_scale")
        if f"{name}.weight_packed" in state:
            words, shape = state.pop(f"{name}.weight_packed"), state.pop(f"{name}.weight_shape").tolist()
            integers = unpack(words, int(weights["num_bits"]), shape[1])
        else:
            integers = state[f"{name}.weight"]
        if integers.dtype != torch.int8 or integers.ndim != 2 or not scale.is_floating_point():
            raise ValueError(f"{integers.dtype} of {integers.ndim} dimensions, scales of {scale.dtype}")
        if weights["strategy"] == "group":
            scale = scale.repeat_interleave(int(weights["group_size"]), 1)
        return integers * scale
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise CompressionError(
            f"{path}: the tensors of {name!r} are missing or do not fit one another ({' '.join(str(error).split())})."
        ) from error
