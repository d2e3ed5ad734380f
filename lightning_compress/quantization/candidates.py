"""Which weights can be quantized, and which module must be watched for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

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
    """

    owner: nn.Module
    attribute: str
    host: nn.Module


@dataclass(frozen=True)
class Weight:
    """A weight that can be quantized.

    Attributes:
        name: Full name, the first one of a tied weight.
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
    found: dict[int, list[tuple[str, str, Use, int]]] = {}
    for name, prefix, use, axis in _uses(model):
        found.setdefault(id(use.owner._parameters[use.attribute]), []).append((name, prefix, use, axis))
    candidates = []
    for entries in found.values():
        name, _, first, axis = entries[0]
        names = tuple(dict.fromkeys([name, *(n for e in entries for n in e[:2])]))
        weight = Weight(name, tuple(use for _, _, use, _ in entries), axis)
        candidates.append(Candidate(names, first.owner, weight))
    return candidates


def _uses(model: nn.Module) -> Iterator[tuple[str, str, Use, int]]:
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


def _use(
    prefix: str, owner: nn.Module, attribute: str, host: nn.Module, axis: int
) -> Iterator[tuple[str, str, Use, int]]:
    if owner._parameters.get(attribute) is not None:
        yield f"{prefix}.{attribute}" if prefix else attribute, prefix, Use(owner, attribute, host), axis
