"""A workspace of W&B that shows the runs of this package: the choice first, then training, then what went wrong."""

from __future__ import annotations

from typing import Any

from lightning_compress.errors import CompressionError, refuse_missing
from lightning_compress.monitoring import names

_FIELD = "wandb-workspace"
SERIES = {
    "Sparsity": (names.SPARSITY, names.SPARSITY_TARGET),
    "Bits": (names.WEIGHT_BITS, names.ACTIVATION_BITS),
    "Size, packed, MB": (names.PACKED_MB,),
    "Phase": (names.PHASE,),
}
"""Title → series of a run that is compressed."""
HEALTH = {
    "Saturation of activations": (names.SATURATION_MEAN, names.SATURATION_MAX),
    "Drift of ranges, powers of two": (names.DRIFT_MEAN, names.DRIFT_MAX),
    "Batches that are not finite": (names.NONFINITE,),
    "Mask churn": (names.CHURN,),
    "Dead channels": (names.DEAD_CHANNELS,),
}
"""Title → series by which a run that goes wrong is seen."""


def workspace(entity: str, project: str, *, metric: str = "test/acc") -> Any:
    """Build the workspace; nothing is sent before its ``save``.

    Args:
        entity: User or team.
        project: Where the runs are.
        metric: The metric that reports compare by, as the module logs it.

    Returns:
        A ``wandb_workspaces.workspaces.Workspace``.

    Raises:
        CompressionError: ``wandb-workspaces`` is not installed.
    """
    refuse_missing(_FIELD, "wandb_workspaces", "wandb-workspaces")
    from wandb_workspaces.reports import v2 as panels
    from wandb_workspaces.workspaces import Section, Workspace

    def against(key: str, title: str) -> Any:
        return panels.ScatterPlot(
            title=title,
            x=panels.SummaryMetric(key),
            y=panels.SummaryMetric(names.of_report("deployed", metric)),
            log_x=True,
        )

    def lines(series: dict[str, tuple[str, ...]]) -> list[Any]:
        return [panels.LinePlot(title=title, x="trainer/global_step", y=list(keys)) for title, keys in series.items()]

    return Workspace(
        entity=entity,
        project=project,
        name="Compression",
        sections=[
            Section(
                name="Which to choose",
                is_open=True,
                panels=[
                    against(names.of_report("packed", "bytes"), f"{metric} against bytes of the packed file"),
                    against(names.of_report("deployed", "bytes"), f"{metric} against bytes of the deployed file"),
                    against(names.of_report("deployed", "latency_ms"), f"{metric} against latency, ms"),
                ],
            ),
            Section(name="Training", is_open=True, panels=lines(SERIES)),
            Section(name="Health", is_open=False, panels=lines(HEALTH)),
        ],
    )


def save_workspace(entity: str, project: str, *, metric: str = "test/acc") -> str:
    """Build the workspace and store it in W&B.

    Returns:
        Its address.

    Raises:
        CompressionError: ``wandb-workspaces`` is not installed, or W&B did not take it.
    """
    found = workspace(entity, project, metric=metric)
    import wandb

    try:
        found.save()
    except (wandb.errors.Error, OSError, ValueError) as error:
        raise CompressionError(
            f"{_FIELD}: W&B did not take the workspace of {entity}/{project} ({error}). Log in with `wandb login`, and "
            f"see that the project has at least one run."
        ) from error
    return str(found.url)
