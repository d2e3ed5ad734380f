"""What is sent to experiment loggers besides the series: plan, tables, pictures, alerts, the report, the files.

The only room that knows W&B. A logger that fails never stops a run: its error becomes a warning.
"""

from lightning_compress.loggers.kinds import sink
from lightning_compress.loggers.results import log_comparison, log_report, summary
from lightning_compress.loggers.training import (
    HISTORY_COLUMNS,
    SCHEDULE,
    alert,
    log_histograms,
    log_image,
    log_layer_history,
    log_layers,
    log_plan,
)
from lightning_compress.loggers.weights_and_biases import finish

__all__ = [
    "HISTORY_COLUMNS",
    "SCHEDULE",
    "alert",
    "finish",
    "log_comparison",
    "log_histograms",
    "log_image",
    "log_layer_history",
    "log_layers",
    "log_plan",
    "log_report",
    "sink",
    "summary",
]
