"""What all subcommands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

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
