"""Which parameters of a model can be pruned, their names, and which are pruned by default."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.parameter_use import ParameterUse
from lightning_compress.pruning.settings import Settings
from lightning_compress.targets import Candidate, Selection, select

_LAYERS = (
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
_TABLES = (nn.Embedding, nn.EmbeddingBag)
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

_TABLE_CLASS = re.compile(r"(?i)norm|embed|position|rotary|codebook")
_TABLE_NAME = re.compile(r"(?i)bias|norm|emb|(^|_)pos|token|cls|latent|prompt|table|codebook|scale|gamma|beta|temper")
_WEIGHT_NAME = re.compile(r"(?i)(^|_)(weights?|kernels?|proj|experts?)(\d*$|_)|^w(_?[a-z0-9]{1,3})?$")

EXPECTED = "a bias, norm, embedding or table"
"""Why most other parameters are dense; no warning is needed for these."""


def candidates(model: nn.Module, use: ParameterUse | None = None) -> list[Candidate[nn.Parameter]]:
    """List every floating point parameter of the model, tied ones once.

    Selected by default are the matrices and kernels of linear, convolution, recurrent and attention layers, and those
    of any other class that a product reads as its weight. Without a recorded forward the latter are guessed: they have
    two dimensions or more, the name of a weight (``weight``, ``w1``, ``kernel``, ``down_proj``) and are in no class of
    norms or embeddings. Biases, norms, embeddings and positional tables are there to be named; a bias answers to its
    own full name only, never to its layer's name or class.

    Args:
        model: The model.
        use: What a recorded forward did with the parameters, see :func:`.parameter_use.record_use`.

    Raises:
        CompressionError: A lazy layer has not seen its first batch, so its weights have no shape yet.

    Example:
        >>> [(c.names, c.default) for c in candidates(nn.Sequential(nn.Linear(2, 2)))]
        [(('0.weight', '0'), True), (('0.bias',), False)]
    """
    names: dict[nn.Parameter, list[str]] = {}
    owners = _owners(model)
    for parameter, places in owners.items():
        names[parameter] = [name for name, _ in places]
        for name, _ in places:
            prefix = name.rpartition(".")[0]
            if prefix and _is_weight(name, parameter):
                names[parameter].append(prefix)
    return [
        Candidate(
            tuple(names[parameter]),
            # A module without a telling class, so that the class "Linear" does not name a Linear's bias.
            places[0][1] if _is_weight(places[0][0], parameter) else nn.Module(),
            parameter,
            default=_dense_because(parameter, places, use) is None,
        )
        for parameter, places in owners.items()
    ]


def left_dense(model: nn.Module, use: ParameterUse | None = None) -> dict[str, str]:
    """Matrices that are not pruned by default though they may be weights, with the reason.

    Example:
        >>> net = nn.Module()
        >>> net.mixing = nn.Parameter(nn.Linear(4, 4).weight.detach())
        >>> left_dense(net)
        {'mixing': 'it is in no known layer; with example_inputs one forward shows whether it is a weight'}
    """
    reasons = {places[0][0]: _dense_because(parameter, places, use) for parameter, places in _owners(model).items()}
    return {name: reason for name, reason in reasons.items() if reason not in (None, EXPECTED)}


def choose(model: nn.Module, settings: Settings, use: ParameterUse | None = None) -> list[Selection[nn.Parameter]]:
    """Select the parameters to prune, in the model's order.

    Raises:
        CompressionError: A pattern matches nothing, or nothing is left to prune.
    """
    selection = select(
        candidates(model, use),
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


def _owners(model: nn.Module) -> dict[nn.Parameter, list[tuple[str, nn.Module]]]:
    """Parameter → its full names, each with the module that has it."""
    owners: dict[nn.Parameter, list[tuple[str, nn.Module]]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(prefix=prefix, recurse=False):
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise CompressionError(
                    f"{name}: a lazy layer whose weights have no shape yet. Run one batch through the model first."
                )
            if parameter.is_floating_point():
                owners.setdefault(parameter, []).append((name, module))
    return owners


def _dense_because(
    parameter: nn.Parameter, places: Sequence[tuple[str, nn.Module]], use: ParameterUse | None
) -> str | None:
    """Why a parameter is not pruned by default; ``None`` if it is."""
    name = places[0][0]
    modules = [module for _, module in places]
    if not _is_matrix(name, parameter) or any(isinstance(module, _TABLES + _NORMS) for module in modules):
        return EXPECTED
    in_layer = all(isinstance(module, _LAYERS) for module in modules)
    own_name = name.rpartition(".")[2]
    named_weight = _WEIGHT_NAME.search(own_name) is not None
    if not (in_layer and named_weight) and (
        sum(size > 1 for size in parameter.shape) < 2
        or _TABLE_NAME.search(own_name)
        or (use is not None and name in use.tables)
    ):
        return EXPECTED
    if use is not None and name in use.computed and name not in use.weights:
        return f"its layer computes with {use.computed[name]}() of it, whose zeros are not where its own are"
    if in_layer:
        return None
    if use is not None and name in use.weights:
        return None
    if any(_TABLE_CLASS.search(base.__name__) for module in modules for base in type(module).__mro__):
        return EXPECTED
    if named_weight:
        # Also where an operation that is unknown here reads it.
        return None
    if use is not None and name in use.seen:
        return "no product or convolution reads it as its weight"
    return "it is in no known layer; with example_inputs one forward shows whether it is a weight"


def _is_weight(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 or name.rpartition(".")[2] == "weight"


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Not the biases of attention keys and values, which have three dimensions, nor the magnitudes of weight norm."""
    return parameter.ndim >= 2 and not re.search(r"(^|\.)(bias_[kv]|weight\w*_g)$", name)
