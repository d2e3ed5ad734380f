"""``lightning-compress wandb-workspace``: a page of W&B for the runs of a project."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lightning_compress.errors import CompressionError


def add_wandb_workspace(commands: Any) -> None:
    """``wandb-workspace``: panels for a project's runs, stored in W&B."""
    from lightning_compress.cli.parser import add_parser

    parser = add_parser(
        commands,
        "wandb-workspace",
        "Give a W&B project the panels that show which compression to choose.",
        run,
        epilog="lightning-compress wandb-workspace my-team/my-project",
    )
    parser.add_argument("project", metavar="ENTITY/PROJECT")
    parser.add_argument("--metric", default="test/acc", help="metric that runs are compared by; default: test/acc")


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Store the workspace and print its address."""
    from lightning_compress.loggers.workspace import save_workspace

    entity, _, project = arguments.project.partition("/")
    if not entity or not project or "/" in project:
        raise CompressionError.field(
            "wandb-workspace ENTITY/PROJECT",
            expected="the name of a user or team, a slash, and the name of a project",
            got=arguments.project,
        )
    address = save_workspace(entity, project, metric=arguments.metric)
    print(json.dumps({"url": address}) if arguments.json else address)
    return 0
