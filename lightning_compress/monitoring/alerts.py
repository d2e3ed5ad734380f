"""Alerts during training: what goes wrong, found from logged numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lightning_compress.metrics.layer_table import LayerRow
from lightning_compress.monitoring.saturation import Saturation

# Patterns round to whole blocks and channels, and a few entries of a layer may be kept.
_SPARSITY = 0.02
# Clipping a few percent is what low precisions want; this much is a range that no longer fits its tensor.
_SATURATION, _GROWTH = 0.1, 3.0


@dataclass(frozen=True)
class Alert:
    """Something that goes wrong.

    Attributes:
        key: What it is about; each is told of once a run.
        title: A few words.
        text: What was expected, what was found, and where.
    """

    key: str
    title: str
    text: str


def find(
    rows: Sequence[LayerRow],
    saturation: Mapping[str, Saturation],
    *,
    before: Mapping[str, float],
    sparsity: float,
    target: float,
    nonfinite: Mapping[str, int] | None = None,
) -> Iterator[Alert]:
    """Compare what a measurement found with what was asked for.

    Args:
        rows: Every parameter of the model.
        saturation: Activation → what its quantizer cut off.
        before: Activation → share that was cut off when it was first measured.
        sparsity: Share of zeros among all prunable weights.
        target: Share that the schedule asks for now.
        nonfinite: Activation → batches in which it held NaN or infinity.

    Example:
        >>> rows = [LayerRow("fc.weight", "Linear", (4, 4), numel=16, zeros=16)]
        >>> [alert.title for alert in find(rows, {}, before={}, sparsity=0.5, target=0.9)]
        ['Sparsity has left its schedule', 'A layer is dead']
    """
    # Whole weights are counted: of four, a share is reached to a quarter at best.
    pruned = sum(row.numel for row in rows if row.sparsity_target is not None)
    layers = sum(1 for row in rows if row.sparsity_target is not None)
    rounding = layers / pruned if pruned else 0.0
    if sparsity < target - max(_SPARSITY, rounding):
        yield Alert(
            "sparsity",
            "Sparsity has left its schedule",
            f"{target:.1%} of the weights should be zero by now, {sparsity:.1%} are. Does something write weights "
            "after the optimizer step, such as averaging or another callback?",
        )
    for row in rows:
        if row.weight and row.numel > 1 and row.zeros == row.numel:
            yield Alert(
                f"layer/{row.name}",
                "A layer is dead",
                f"All {row.numel} entries of {row.name} are zero. Prune it less: in overrides, or with layer_floor or "
                "distribution='erk'.",
            )
    if bad := [name for name, count in (nonfinite or {}).items() if count]:
        yield Alert(
            "nonfinite",
            "Activations are not finite",
            f"{bad[0]} held NaN or infinity in a training batch"
            f"{f', as did {len(bad) - 1} more' if len(bad) > 1 else ''}; ranges were left as they were. Look at the "
            "data and the learning rate.",
        )
    for name, seen in saturation.items():
        if seen.constant:
            yield Alert(
                f"constant/{name}",
                "A layer is dead",
                f"All values of {name} in a batch are equal: nothing passes through it any more.",
            )
        elif seen.share > max(_SATURATION, _GROWTH * before.get(name, 0.0)):
            yield Alert(
                f"saturation/{name}",
                "Activations saturate",
                f"{seen.share:.1%} of the values of {name} lie beyond its range. Let ranges move for longer "
                "(freeze_range), give it more bits, or lower the learning rate.",
            )
