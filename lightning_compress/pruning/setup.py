"""From settings and a model to what is pruned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lightning_compress.errors import CompressionError
from lightning_compress.pruning.candidates import choose
from lightning_compress.pruning.channels.group import ChannelGroup
from lightning_compress.pruning.channels.shrink import removable_groups
from lightning_compress.pruning.patterns import Pattern
from lightning_compress.pruning.prunable import Site
from lightning_compress.pruning.settings import Settings


def weight_sites(model: nn.Module, settings: Settings) -> tuple[list[Site], dict[str, str]]:
    """One site for each weight to prune.

    Returns:
        The sites, and the parameters that the pattern does not fit, with the reason.

    Raises:
        CompressionError: Nothing is left to prune, or the pattern does not fit a weight that was named.
    """
    sites = []
    skipped: dict[str, str] = {}
    for selected in choose(model, settings):
        name, parameter, own = selected.name, selected.value, selected.overrides
        pattern: Pattern = own.get("pattern", settings.pattern)
        if refusal := pattern.refusal(parameter.shape):
            if settings.targets is not None or own:
                raise CompressionError(
                    f"{settings.field}.pattern: {name} of shape {list(parameter.shape)} cannot be pruned so: "
                    f"{refusal}. Leave it out with ignore, or give it another pattern with overrides."
                )
            skipped[name] = refusal
            continue
        sites.append(Site.of(name, parameter, pattern, **_shares(own, settings)))
    _refuse_nothing(sites, skipped, settings)
    return sites, skipped


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
        for name, value in _shares(own, settings).items():
            setattr(group, name, value)
        groups.append(group)
    _refuse_nothing(groups, skipped, settings)
    shares = _shares({}, settings)
    sites = {
        part.name: Site.of(part.name, part.parameter, settings.pattern, **shares)
        for group in groups
        for part in group.parts
    }
    return list(sites.values()), groups, skipped


def _shares(own: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    final = own.get("final_sparsity", settings.final_sparsity)
    return {
        "initial": min(own.get("initial_sparsity", settings.initial_sparsity), final),
        "final": final,
        "floor": own.get("layer_floor", settings.layer_floor),
        "own": bool(own.keys() - {"layer_floor"}),
    }


def _refuse_nothing(found: Sequence[object], skipped: Mapping[str, str], settings: Settings) -> None:
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise CompressionError(f"{settings.field}.pattern: nothing is left to prune in this model. {reasons}.")
