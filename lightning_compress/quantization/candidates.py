"""Which weights can be quantized, and which module must be watched for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_compress.foundation.recorded_forward import Op, Tape
from lightning_compress.quantization.data_flow import activations, joins, source
from lightning_compress.quantization.operations import CONVOLUTIONS, LINEAR, PRODUCTS
from lightning_compress.targets import Candidate

_CHANNELS_FIRST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
_CHANNELS_SECOND = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_IN_BIAS = "in_proj_bias"


@dataclass(frozen=True)
class Use:
    """One attribute through which a weight is read.

    Attributes:
        owner: Module that holds the attribute.
        attribute: Its name there.
        host: Module whose forward reads it.
        bias: Attribute of the owner for the bias that is added to the product; it may hold none.
    """

    owner: nn.Module
    attribute: str
    host: nn.Module
    bias: str | None = None


@dataclass(frozen=True)
class Weight:
    """A weight that can be quantized.

    Attributes:
        name: Full name, the first one under which the model has it.
        uses: Where it is read; more than one if it is tied.
        axis: Dimension of the output channels.
    """

    name: str
    uses: tuple[Use, ...]
    axis: int


def weights(model: nn.Module) -> list[Candidate[Weight]]:
    """Every weight of a model that can be quantized, tied ones once, answering to each of their names.

    ``nn.MultiheadAttention`` reads its output projection's weight itself, without calling that module: there the
    attention is the host.
    """
    registered: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        registered.setdefault(id(parameter), []).append(name)
    found: dict[int, list[tuple[str, Use, int]]] = {}
    for prefix, use, axis in _uses(model):
        found.setdefault(id(use.owner._parameters[use.attribute]), []).append((prefix, use, axis))
    candidates = []
    for key, entries in found.items():
        _, first, axis = entries[0]
        names = tuple(dict.fromkeys([*registered[key], *(prefix for prefix, _, _ in entries)]))
        weight = Weight(names[0], tuple(use for _, use, _ in entries), axis)
        candidates.append(Candidate(names, first.owner, weight))
    return candidates


def loose(model: nn.Module) -> list[Candidate[None]]:
    """Parameters of two dimensions or more that no layer reads: weights, where a function reads them as such."""
    taken = {id(use.owner._parameters[use.attribute]) for _, use, _ in _uses(model)}
    taken |= {id(parameter) for _, use, _ in _computed_uses(model) for parameter in use.owner.parameters()}
    modules = dict(model.named_modules())
    return [
        Candidate((name,), modules[name.rpartition(".")[0]], None)
        for name, parameter in model.named_parameters()
        if id(parameter) not in taken and parameter.ndim >= 2 and parameter.is_floating_point()
    ]


def computed(model: nn.Module) -> list[Candidate[str]]:
    """Weights of layers that are no parameters but made from others, by weight norm for one: why each stays float."""
    return [
        Candidate((f"{prefix}.{use.attribute}".lstrip("."), prefix), use.owner, _computation(use))
        for prefix, use, _ in _computed_uses(model)
    ]


@dataclass(frozen=True)
class FunctionalUse:
    """A weight that a module's forward hands to a function such as ``F.linear`` or ``torch.addmm`` itself, by names.

    Attributes:
        weight: Full name of the weight.
        bias: Full name of the bias, if it is a parameter.
        host: Full name of the module.
        axis: Dimension of the output channels.
        batched: Whether it holds several matrices, whose kernels take a single scale.
    """

    weight: str
    bias: str | None
    host: str
    axis: int
    batched: bool = False

    def use(self, modules: dict[str, nn.Module]) -> Use:
        """The same by modules. A bias of another module than the weight's is no part of it."""
        owner, _, attribute = self.weight.rpartition(".")
        bias_owner, _, bias = self.bias.rpartition(".") if self.bias else ("", "", None)
        return Use(modules[owner], attribute, modules[self.host], bias if bias_owner == owner else None)


def functional_uses(tape: Tape, model: nn.Module) -> list[FunctionalUse]:
    """Every read of a weight on a tape that ``weights`` does not know of, each once.

    Such are ``F.linear(x, self.weight)`` in a module that is no layer, and ``F.linear(x, self.embedding.weight)``
    in the module around an embedding.
    """
    modules = dict(model.named_modules())
    known = {(id(use.owner), use.attribute, id(use.host)) for _, use, _ in _uses(model)}
    found = [f for op in tape.ops if (f := _functional(op)) is not None]
    uses = ((f, f.use(modules)) for f in dict.fromkeys(found))
    return [f for f, use in uses if (id(use.owner), use.attribute, id(use.host)) not in known]


def outside_uses(tape: Tape, model: nn.Module) -> list[FunctionalUse]:
    """Every read of a layer's weight on a tape in another module than the layer, by any operation, each once.

    Such are an embedding's table that a function normalizes, and ``F.conv1d(x, self.conv.weight.squeeze(1), ...)``.
    There the module that runs the operation must see the quantized weight, too, since a file holds no other. A read
    that ends in a single number, as a penalty does, is no part of the network.
    """
    known = {candidate.value.name: candidate.value for candidate in weights(model)}
    modules = dict(model.named_modules())
    data = activations(tape)
    found: dict[FunctionalUse, None] = {}
    for op in tape.ops:
        for value in op.inputs:
            if (weight := known.get(value.parameter or "")) is None:
                continue
            running = [name for name in op.modules if name in modules]
            read_in_layer = any(use.host is modules[name] for use in weight.uses for name in running)
            # A module that is given the weight as an argument did not read it.
            given = {boundary.module for boundary in value.inputs}
            reading = next((name for name in reversed(running) if name not in given), None)
            if reading is not None and not read_in_layer and joins(op, value, data):
                found[FunctionalUse(weight.name, None, reading, weight.axis)] = None
    return list(found)


# Function → where its weight and its bias stand among the arguments.
_POSITIONS = {
    **dict.fromkeys(CONVOLUTIONS | LINEAR, (1, 2)),
    **dict.fromkeys(("matmul", "mm", "bmm"), (1, None)),
    **dict.fromkeys(("addmm", "baddbmm"), (2, 0)),
    "bilinear": (2, 3),
}


def _functional(op: Op) -> FunctionalUse | None:
    if not op.modules:
        return None
    if op.name == "einsum":
        return _in_einsum(op)
    weight_at, bias_at = _POSITIONS.get(op.name, (None, None))
    if weight_at is None or len(op.inputs) <= weight_at:
        return None
    value = op.inputs[weight_at]
    weight = source(value)
    if weight.parameter is None or weight.ndim != value.ndim or weight.ndim < 2:
        return None
    axis = 1 if "transpose" in op.name else 0
    if op.name in PRODUCTS:
        # The last dimension is that of the outputs, unless the weight is transposed on the way.
        axis = weight.ndim - (1 if value is weight else 2)
    bias = op.inputs[bias_at].parameter if bias_at is not None and len(op.inputs) > bias_at else None
    return FunctionalUse(weight.parameter, bias, op.modules[-1], axis, op.name in PRODUCTS and weight.ndim > 2)


def _in_einsum(op: Op) -> FunctionalUse | None:
    """A parameter among an einsum's operands; the last dimension that it alone gives the result is the outputs'."""
    equation = op.arguments[0]
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return None
    operands, result = equation.replace(" ", "").split("->")
    for letters, value in zip(operands.split(","), op.inputs, strict=False):
        if value.parameter is not None and value.ndim >= 2:
            others = "".join(operands.split(",")).replace(letters, "", 1)
            free = [i for i, letter in enumerate(letters) if letter in result and letter not in others]
            return FunctionalUse(value.parameter, None, op.modules[-1], free[-1] if free else value.ndim - 1, True)
    return None


def complex_weights(model: nn.Module) -> list[Candidate[str]]:
    """Weights of layers that hold complex numbers: why each stays float."""
    return [
        Candidate((f"{prefix}.{use.attribute}".lstrip("."), prefix), use.owner, _COMPLEX)
        for prefix, use, _ in _reads(model)
        if (parameter := use.owner._parameters.get(use.attribute)) is not None and parameter.is_complex()
    ]


_COMPLEX = (
    "its numbers are complex, for which no runtime has integer kernels; give it real and imaginary parts in layers of "
    "their own"
)


def _uses(model: nn.Module) -> Iterator[tuple[str, Use, int]]:
    for prefix, use, axis in _reads(model):
        parameter = use.owner._parameters.get(use.attribute)
        if parameter is not None and parameter.is_floating_point():
            yield prefix, use, axis


def _computed_uses(model: nn.Module) -> Iterator[tuple[str, Use, int]]:
    # Asked for without reading it: spectral norm takes a step at each read.
    for prefix, use, axis in _reads(model):
        known = use.attribute in vars(use.owner) or hasattr(type(use.owner), use.attribute)
        if known and use.owner._parameters.get(use.attribute) is None:
            yield prefix, use, axis


def _computation(use: Use) -> str:
    if is_parametrized(use.owner, use.attribute):
        steps = use.owner.get_submodule(f"parametrizations.{use.attribute}").children()
        made_by = ", ".join(type(step).__name__.lstrip("_") for step in steps)
        return (
            f"its weight is computed by {made_by}, so that nothing can quantize it; call "
            f"torch.nn.utils.parametrize.remove_parametrizations first"
        )
    return (
        "its weight is computed from other parameters, so that nothing can quantize it; make it a parameter first, by "
        "torch.nn.utils.remove_weight_norm, remove_spectral_norm or prune.remove"
    )


def _reads(model: nn.Module) -> Iterator[tuple[str, Use, int]]:
    read_by_attention: set[nn.Module] = set()
    for prefix, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            read_by_attention.add(module.out_proj)
            for attribute in _PROJECTIONS:
                yield prefix, Use(module, attribute, module, _IN_BIAS if attribute == _PROJECTIONS[0] else None), 0
            yield f"{prefix}.out_proj" if prefix else "out_proj", Use(module.out_proj, "weight", module, "bias"), 0
        elif isinstance(module, nn.RNNBase):
            for attribute in module._flat_weights_names:
                if attribute.startswith("weight"):
                    yield prefix, Use(module, attribute, module), 0
        elif isinstance(module, nn.RNNCellBase):
            for attribute in ("weight_ih", "weight_hh"):
                yield prefix, Use(module, attribute, module, attribute.replace("weight", "bias")), 0
        elif isinstance(module, _CHANNELS_FIRST) and module not in read_by_attention:
            yield prefix, Use(module, "weight", module, "bias"), 0
        elif isinstance(module, _CHANNELS_SECOND):
            yield prefix, Use(module, "weight", module, "bias"), 1
