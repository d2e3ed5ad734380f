"""Selects what is pruned, from settings and a model."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.parameter_use import ParameterUse, record_use
from lightning_compress.foundation.shards import Shards, is_sharded
from lightning_compress.pruning.candidates import candidates, choose, left_dense
from lightning_compress.pruning.channels.group import ChannelGroup
from lightning_compress.pruning.channels.shrink import removable_groups
from lightning_compress.pruning.patterns import NOfM, Pattern
from lightning_compress.pruning.prunable import Site
from lightning_compress.pruning.settings import Settings
from lightning_compress.targets import rank

_WORTH_TELLING = 0.01
"""Share of the parameters that may stay dense without a word."""


def weight_sites(
    model: nn.Module, settings: Settings, example_inputs: Any = None
) -> tuple[list[Site], dict[str, str], Shards]:
    """One site for each weight to prune.

    Args:
        model: The model.
        settings: What is asked for.
        example_inputs: Inputs of one forward, which shows what parameters are weights; by default the module's
            ``example_input_array``. Without them classes and names decide.

    Returns:
        The sites, the matrices that stay dense without a setting that says so, with the reason, and the processes that
        hold the weights.

    Raises:
        CompressionError: Nothing is left to prune, or the pattern does not fit a weight that was named.
    """
    use = _use(model, settings, example_inputs)
    selection = choose(model, settings, use)
    shards = Shards.of({selected.name: selected.value for selected in selection}, settings.field)
    sites = []
    skipped = _left_out(model, settings, {selected.name for selected in selection}, use)
    for selected in selection:
        name, parameter, own = selected.name, selected.value, selected.overrides
        pattern: Pattern = own.get("pattern", settings.pattern)
        if isinstance(pattern, NOfM) and use is not None and use.weights.get(name) == 0:
            # A layer that holds [in, out].
            pattern = dataclasses.replace(pattern, dim=0)
        if refusal := pattern.refusal(parameter.shape) or _split(pattern, parameter.shape, shards):
            if settings.targets is not None or own:
                raise CompressionError(
                    f"{settings.field}.pattern: {name} of shape {list(parameter.shape)} cannot be pruned so: "
                    f"{refusal}. Leave it out with ignore, or give it another pattern with overrides."
                )
            skipped[name] = refusal
            continue
        sites.append(Site.of(name, parameter, pattern, **_shares(own, settings, pattern.units(parameter.shape))))
    _refuse_nothing(sites, skipped, settings)
    _warn_of_dense(model, sites, skipped, settings.field)
    return sites, skipped, shards


def _use(model: nn.Module, settings: Settings, example_inputs: Any) -> ParameterUse | None:
    own = getattr(model, "example_input_array", None)
    if example_inputs is None and own is None:
        return None
    try:
        return record_use(model, own if example_inputs is None else example_inputs, settings.field)
    except CompressionError as error:
        if example_inputs is not None:
            raise
        # A module may have one for other ends, and trained with it before.
        warnings.warn(f"{error} They are the module's example_input_array.", stacklevel=6)
        return None


def _split(pattern: Pattern, shape: Sequence[int], shards: Shards) -> str | None:
    """Why a pattern does not fit the rows that each process holds."""
    rows = shards.chunk(shape[0])
    if shards.size == 1 or rows % pattern.rows() == 0:
        return None
    return f"{shards.size} processes hold {rows} rows each, not a multiple of the pattern's {pattern.rows()}"


def _left_out(model: nn.Module, settings: Settings, selected: set[str], use: ParameterUse | None) -> dict[str, str]:
    """Matrices that stay dense though no setting says so."""
    if settings.targets is not None:
        return {}
    unwanted = [*settings.ignore, *(pattern for pattern, own in settings.overrides.items() if own is None)]
    left = left_dense(model, use)
    return {
        candidate.names[0]: left[candidate.names[0]]
        for candidate in candidates(model, use)
        if candidate.names[0] in left.keys() - selected
        and all(rank(pattern, candidate, settings.field) is None for pattern in unwanted)
    }


def channel_sites(
    model: nn.Module, settings: Settings, example_inputs: Any
) -> tuple[list[Site], list[ChannelGroup], dict[str, str]]:
    """Groups of channels to prune, and a site for each weight that has a part in one.

    A group is pruned when every weight that makes its channels is selected. A weight that only reads them need
    not be.

    Returns:
        The sites, the groups, and the groups left whole with the reason.

    Raises:
        CompressionError: Nothing is left to prune, or example inputs are missing.
    """
    if example_inputs is None:
        example_inputs = getattr(model, "example_input_array", None)
    if example_inputs is None:
        raise CompressionError(
            f"{settings.field}.example_inputs: pattern='channel' has to run the model once to see which channels "
            "depend on each other. Give example_inputs, or set example_input_array on the module."
        )
    if any(is_sharded(parameter) for parameter in model.parameters()):
        raise CompressionError(
            f"{settings.field}.pattern: 'channel' has to see and trace whole weights, and these are sharded. Use "
            "another pattern, or strategy='ddp'."
        )
    selection = choose(model, settings)
    selected = {chosen.value: chosen.overrides for chosen in selection}
    found, skipped = removable_groups(model, example_inputs)
    groups = []
    for group in found:
        left_out = [part.name for part in group.produced if part.parameter not in selected]
        if left_out:
            skipped[group.name] = f"{left_out[0]}, which makes its channels, is not a target"
            continue
        own = {k: v for part in group.produced for k, v in selected[part.parameter].items()}
        for name, value in _shares(own, settings, group.units).items():
            setattr(group, name, value)
        groups.append(group)
    _refuse_nothing(groups, skipped, settings)
    shares = _shares({}, settings, 0)
    sites = {
        part.name: Site.of(part.name, part.parameter, settings.pattern, **shares)
        for group in groups
        for part in group.parts
    }
    return list(sites.values()), groups, skipped


def _shares(own: Mapping[str, Any], settings: Settings, units: int) -> dict[str, Any]:
    final = own.get("final_sparsity", settings.final_sparsity)
    return {
        "initial": min(own.get("initial_sparsity", settings.initial_sparsity), final),
        "final": final,
        "floor": own.get("layer_floor", settings.floor(final, own.get("pattern", settings.pattern), units)),
        "own": bool(own.keys() - {"layer_floor"}),
    }


def _refuse_nothing(found: Sequence[object], skipped: Mapping[str, str], settings: Settings) -> None:
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise CompressionError(f"{settings.field}.pattern: nothing is left to prune in this model. {reasons}.")


def _warn_of_dense(model: nn.Module, sites: Sequence[Site], skipped: Mapping[str, str], field: str) -> None:
    """Warn of matrices that stay dense though no setting says so, with their share of the parameters."""
    numel = {name: parameter.numel() for name, parameter in model.named_parameters()}
    total = sum(numel.values())
    if sum(numel[name] for name in skipped) < _WORTH_TELLING * total:
        return
    largest = sorted(skipped, key=lambda name: -numel[name])
    named = ", ".join(f"{name} ({skipped[name]})" for name in largest[:3])
    more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    warnings.warn(
        f"{field}: {sum(numel[name] for name in skipped) / total:.0%} of the model's parameters stay dense without "
        f"being asked to: {named}{more}. final_sparsity is a share of the pruned weights, "
        f"{sum(site.entries for site in sites) / total:.0%} of the parameters. Name the others in targets to prune "
        "them, or in ignore to confirm.",
        stacklevel=6,
    )
