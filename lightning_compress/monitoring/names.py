"""Names under which runs are logged: series, tables, pictures and summary values, all below ``compress/``."""

from __future__ import annotations

PREFIX = "compress/"
SPARSITY, SPARSITY_TARGET = f"{PREFIX}sparsity/global", f"{PREFIX}sparsity/target"
WEIGHT_BITS, ACTIVATION_BITS = f"{PREFIX}bits/weight", f"{PREFIX}bits/activation"
DENSE_MB, PACKED_MB = f"{PREFIX}size_mb/dense", f"{PREFIX}size_mb/packed"
COMPRESSION_RATIO, BOPS = f"{PREFIX}compression_ratio", f"{PREFIX}bops"
PHASE, READY = f"{PREFIX}phase", f"{PREFIX}ready"
CHURN, DEAD_CHANNELS = f"{PREFIX}churn", f"{PREFIX}dead_channels"
SATURATION_MEAN, SATURATION_MAX = f"{PREFIX}saturation/mean", f"{PREFIX}saturation/max"
DRIFT_MEAN, DRIFT_MAX = f"{PREFIX}drift/mean", f"{PREFIX}drift/max"
NONFINITE = f"{PREFIX}nonfinite"
LAYERS, LAYERS_OVER_TIME = f"{PREFIX}layers", f"{PREFIX}layers_over_time"
SCHEDULE, WEIGHTS = f"{PREFIX}schedule", f"{PREFIX}weights"


def of_report(*parts: str) -> str:
    """A number of the report among a run's summary values.

    Example:
        >>> of_report("deployed", "bytes")
        'compress/deployed/bytes'
    """
    return PREFIX + "/".join(parts)
