"""Which weights can be quantized, and which module must be watched for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from lightning_compress.quantization.backends import CONVOLUTIONS, LINEAR
from lightning_compress.quantization.recording import Op, Tape
from lightning_compress.targets import Candidate

_CHANNELS_FIRST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
_CHANNELS_SECOND = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


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
    modules = dict(model.named_modules())
    return [
        Candidate((name,), modules[name.rpartition(".")[0]], None)
        for name, parameter in model.named_parameters()
        if id(parameter) not in taken and parameter.ndim >= 2 and parameter.is_floating_point()
    ]


@dataclass(frozen=True)
class FunctionalUse:
    """A weight that a module's forward hands to ``F.linear`` or ``F.conv*`` itself, by names.

    Attributes:
        weight: Full name of the weight.
        bias: Full name of the bias, if it is a parameter.
        host: Full name of the module.
        axis: Dimension of the output channels.
    """

    weight: str
    bias: str | None
    host: str
    axis: int

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


def _functional(op: Op) -> FunctionalUse | None:
    if op.name not in CONVOLUTIONS | LINEAR or not op.modules or len(op.inputs) < 2:
        return None
    weight, *bias = (value.parameter for value in op.inputs[1:3])
    if weight is None:
        return None
    return FunctionalUse(weight, bias[0] if bias else None, op.modules[-1], 1 if "transpose" in op.name else 0)


def _uses(model: nn.Module) -> Iterator[tuple[str, Use, int]]:
    read_by_attention: set[nn.Module] = set()
    for prefix, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            read_by_attention.add(module.out_proj)
            for attribute in _PROJECTIONS:
                yield from _use(prefix, module, attribute, module, 0)
            yield from _use(f"{prefix}.out_proj" if prefix else "out_proj", module.out_proj, "weight", module, 0)
        elif isinstance(module, nn.RNNBase):
            for attribute in module._flat_weights_names:
                if attribute.startswith("weight"):
                    yield from _use(prefix, module, attribute, module, 0)
        elif isinstance(module, _CHANNELS_FIRST) and module not in read_by_attention:
            yield from _use(prefix, module, "weight", module, 0)
        elif isinstance(module, _CHANNELS_SECOND):
            yield from _use(prefix, module, "weight", module, 1)


def _use(prefix: str, owner: nn.Module, attribute: str, host: nn.Module, axis: int) -> Iterator[tuple[str, Use, int]]:
    if owner._parameters.get(attribute) is not None:
        bias = "bias" if attribute == "weight" else None
        yield prefix, Use(owner, attribute, host, bias), axis
