"""Which weights can be quantized, and which module must be watched for each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lightning_compress.targets import Candidate

_CHANNELS_FIRST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CHANNELS_SECOND = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Weight:
    """A weight that can be quantized.

    Attributes:
        name: Full name.
        owner: Module that holds the parameter.
        attribute: Its name there.
        hosts: Modules whose forward reads it.
        axis: Dimension of the output channels.
    """

    name: str
    owner: nn.Module
    attribute: str
    hosts: tuple[nn.Module, ...]
    axis: int


def weights(model: nn.Module) -> list[Candidate[Weight]]:
    """Every weight of a model that can be quantized, tied ones once.

    ``nn.MultiheadAttention`` reads its output projection's weight itself, without calling that module: there the
    attention is the host.
    """
    found: list[Candidate[Weight]] = []
    seen: dict[int, str] = {}
    inside_attention: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            inside_attention.add(f"{name}.out_proj" if name else "out_proj")
            for attribute in _PROJECTIONS:
                _add(found, seen, name, module, attribute, (module,), 0)
            _add(
                found,
                seen,
                f"{name}.out_proj" if name else "out_proj",
                module.out_proj,
                "weight",
                (module,),
                0,
            )
        elif isinstance(module, _CHANNELS_FIRST) and name not in inside_attention:
            _add(found, seen, name, module, "weight", (module,), 0)
        elif isinstance(module, _CHANNELS_SECOND):
            _add(found, seen, name, module, "weight", (module,), 1)
    return found


def _add(
    found: list[Candidate[Weight]],
    seen: dict[int, str],
    prefix: str,
    module: nn.Module,
    attribute: str,
    hosts: tuple[nn.Module, ...],
    axis: int,
) -> None:
    parameter = module._parameters.get(attribute)
    if parameter is None or id(parameter) in seen:
        return
    name = f"{prefix}.{attribute}" if prefix else attribute
    seen[id(parameter)] = name
    found.append(Candidate((name, prefix), module, Weight(name, module, attribute, hosts, axis)))
