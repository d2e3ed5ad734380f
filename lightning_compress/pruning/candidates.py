"""Which parameters of a model can be pruned, and by which names they go."""

from __future__ import annotations

import re

from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.settings import Settings
from lightning_compress.targets import Candidate, Selection, select

_DEFAULT_LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
)


def candidates(model: nn.Module) -> list[Candidate[nn.Parameter]]:
    """List every floating point parameter of the model, tied ones once.

    Matrices and kernels of linear, convolution, recurrent and attention layers are selected by default. Biases,
    norms and embeddings are there to be named; a bias answers to its own full name only, never to its layer's
    name or class.

    Raises:
        CompressionError: A lazy layer has not seen its first batch, so its weights have no shape yet.

    Example:
        >>> [(c.names, c.default) for c in candidates(nn.Sequential(nn.Linear(2, 2)))]
        [(('0.weight', '0'), True), (('0.bias',), False)]
    """
    names: dict[nn.Parameter, list[str]] = {}
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(prefix=prefix, recurse=False):
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise CompressionError(
                    f"{name}: a lazy layer whose weights have no shape yet. Run one batch through the model first."
                )
            if not parameter.is_floating_point():
                continue
            names.setdefault(parameter, []).append(name)
            owners.setdefault(parameter, []).append(module)
            if prefix and _is_weight(name, parameter):
                names[parameter].append(prefix)
    return [
        Candidate(
            tuple(names[parameter]),
            # A module without a telling class, so that the class "Linear" does not name a Linear's bias.
            modules[0] if _is_weight(names[parameter][0], parameter) else nn.Module(),
            parameter,
            default=_is_matrix(names[parameter][0], parameter)
            and all(isinstance(module, _DEFAULT_LAYERS) for module in modules),
        )
        for parameter, modules in owners.items()
    ]


def choose(model: nn.Module, settings: Settings) -> list[Selection[nn.Parameter]]:
    """Select the parameters to prune, in the model's order.

    Raises:
        CompressionError: A pattern matches nothing, or nothing is left to prune.
    """
    selection = select(
        candidates(model),
        targets=settings.targets,
        ignore=settings.ignore,
        overrides=settings.overrides,
        field=settings.field,
    )
    if not selection:
        raise CompressionError(
            f"{settings.field}: nothing is left to prune in {type(model).__name__}. Expected at least one convolution, "
            "linear, recurrent or attention layer that is not ignored; name others with targets."
        )
    return selection


def _is_weight(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 or name.rpartition(".")[2] == "weight"


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Not the biases of attention keys and values, which have three dimensions, nor the magnitudes of weight norm."""
    return parameter.ndim >= 2 and not re.search(r"(^|\.)(bias_[kv]|weight\w*_g)$", name)
