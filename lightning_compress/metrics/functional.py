"""The arithmetic of the metrics: pure functions of layer rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_compress.metrics.layer_table import LayerRow

FLOAT_BYTES = 4


def sparsity(rows: Sequence[LayerRow]) -> float:
    """Share of zeros over all prunable weights: those that are pruned, or where none is, every layer's weight.

    Example:
        >>> sparsity([LayerRow("fc.weight", "Linear", (2, 4), numel=8, zeros=6)])
        0.75
    """
    counted = _prunable(rows)
    return sum(row.zeros for row in counted) / max(1, sum(row.numel for row in counted))


def weight_bits(rows: Sequence[LayerRow]) -> float:
    """Mean bits of a weight over all entries of the layers' weights; biases, norms and embeddings are left out.

    Example:
        >>> four = LayerRow("a.weight", "Linear", (3, 2), numel=6, zeros=0, weight_bits=4)
        >>> eight = LayerRow("b.weight", "Linear", (1, 2), numel=2, zeros=0, weight_bits=8)
        >>> weight_bits([four, eight])
        5.0
    """
    counted = [row for row in rows if row.weight]
    return sum(row.numel * row.weight_bits for row in counted) / max(1, sum(row.numel for row in counted))


def activation_bits(rows: Sequence[LayerRow]) -> float:
    """Mean bits of a layer's input: each layer with a weight counts the same."""
    counted = [row for row in rows if row.weight]
    return sum(row.activation_bits for row in counted) / max(1, len(counted))


def dense_bytes(rows: Sequence[LayerRow], extra: int = 0) -> int:
    """Bytes of the uncompressed model: every parameter in float32, and ``extra`` (see ``extra_bytes``)."""
    return FLOAT_BYTES * sum(row.numel for row in rows) + extra


def packed_bytes(rows: Sequence[LayerRow], extra: int = 0) -> float:
    """Estimated bytes of the packed file, from entropy (Shannon 1948).

    A layer's weight takes its entropy (``LayerRow.entropy``), the rest is stored as it is. File headers are left out;
    the report has the bytes of the file itself.

    Args:
        rows: Every parameter of the model.
        extra: Bytes stored besides them, see ``extra_bytes``.
    """
    return sum(row_bytes(row) for row in rows) + extra


def bit_operations(rows: Sequence[LayerRow], products: int = 0) -> float | None:
    """Bit operations of one forward: multiply-accumulates × bits of the weight × bits of the layer's input.

    The measure is of Baskin et al. 2018 (UNIQ), in the form without accumulators of van Baalen et al. 2020
    (Bayesian Bits, eq. 23). Zero weights count: scattered zeros save no operation on today's runtimes.

    Args:
        rows: Rows with their multiply-accumulates.
        products: Multiply-accumulates between two activations, counted at 32 × 32 bits.

    Returns:
        The sum, or ``None`` if multiply-accumulates were not counted.

    Example:
        >>> bit_operations([LayerRow("fc.weight", "Linear", (2, 4), 8, 0, weight_bits=8, activation_bits=8, macs=8)])
        512.0
    """
    if any(row.macs is None for row in rows):
        return None
    layers = sum((row.macs or 0) * row.weight_bits * row.activation_bits for row in rows)
    return float(layers + products * 32 * 32)


def extra_bytes(model: nn.Module) -> int:
    """Bytes of what a checkpoint holds besides the rows: persistent buffers and parameters without dimensions."""
    listed = {name for name, p in model.named_parameters(remove_duplicate=False) if p.ndim >= 1}
    seen: dict[int, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if name not in listed and isinstance(value, Tensor):
            seen[id(value)] = value
    return sum(value.numel() * value.element_size() for value in seen.values())


def _prunable(rows: Sequence[LayerRow]) -> list[LayerRow]:
    return [row for row in rows if row.sparsity_target is not None] or [row for row in rows if row.weight]


def row_bytes(row: LayerRow) -> float:
    """Estimated bytes of one parameter in the packed file; see ``packed_bytes``."""
    return row.numel * (row.weight_bits if row.entropy is None else row.entropy) / 8
