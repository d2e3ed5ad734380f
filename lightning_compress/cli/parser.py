"""What all subcommands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_compress.errors import CompressionError

Command = Callable[[argparse.Namespace, list[str]], int]


def add_parser(commands: Any, name: str, help: str, command: Command, **options: Any) -> argparse.ArgumentParser:
    """Add a subcommand with the options that all share.

    Args:
        commands: What ``add_subparsers`` returned.
        name: The subcommand.
        help: One line about it.
        command: Called with the parsed arguments and those that the parser does not know; returns the exit code.
        options: More arguments of ``ArgumentParser``.
    """
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help, **options)
    parser.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(command=command, passes_on=False)
    return parser


def with_choices(command: str, overrides: Sequence[str], choices: Mapping[str, str]) -> list[str]:
    """Overrides with a choice of each group that they do not name themselves.

    Args:
        command: The subcommand, for messages.
        overrides: What was given, unknown options among it.
        choices: Group → choice.

    Raises:
        CompressionError: One is an option that the subcommand does not have.

    Example:
        >>> with_choices("advise", ["pruning=none", "seed=1"], {"pruning": "uniform", "quantization": "w8a8"})
        ['quantization=w8a8', 'pruning=none', 'seed=1']
    """
    for text in overrides:
        if text.startswith("-"):
            raise CompressionError(f"{command}: there is no option {text}. See lightning-compress {command} --help.")
    given = {text.lstrip("+~").split("=", 1)[0] for text in overrides}
    return [*(f"{group}={choice}" for group, choice in choices.items() if group not in given), *overrides]
