"""Reaching a logger's server, leaving it, and going on without it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from io import StringIO

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_compress.lightning_packages import is_instance

PATIENCE_S = 120
"""How long an artifact or the end of a run may wait for a server before the run goes on without it."""


def connected(logger: Logger, *, silent: bool = False) -> str | None:
    """Connect a logger to its server, where it has one.

    Args:
        logger: Any logger.
        silent: Whether W&B's own lines stay off the screen, those among them that it prints before it reads a run's
            settings.

    Returns:
        Why it cannot be used: its server refuses, or does not answer within ``init_timeout``; else ``None``.
    """
    if not is_instance(logger, WandbLogger):
        return None
    import wandb

    # A run whose server has gone since must end all the same.
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", str(PATIENCE_S))
    try:
        with redirect_stderr(StringIO()) if silent else nullcontext():
            _ = logger.experiment
    except (wandb.Error, OSError) as error:
        return " ".join(str(error).split())
    return None


def place(logger: Logger) -> str | None:
    """Where a W&B run can be seen: its page, or offline the folder that ``wandb sync`` takes; else ``None``."""
    if not is_instance(logger, WandbLogger):
        return None
    run = logger.experiment
    return os.path.dirname(run.dir) if run.offline else run.url


def finish() -> None:
    """End the W&B run of this process, if there is one.

    ``WandbLogger`` leaves its run open for the next Trainer; in a sweep every job would write into the first one's.
    """
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()


@contextmanager
def kept_going(logger: Logger, what: str) -> Iterator[None]:
    """Turn what a logger's server or disk does wrong into a warning."""
    failures: tuple[type[Exception], ...] = (OSError, TimeoutError)
    if is_instance(logger, WandbLogger):
        import wandb

        failures += (wandb.Error,)
    try:
        yield
    except failures as error:
        rank_zero_warn(f"{type(logger).__name__} did not take {what}: {error}. The run goes on.")
