"""What all subcommands share."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_compress.apps.configuration.compose import composed, working_directory_importable
from lightning_compress.errors import CompressionError

if TYPE_CHECKING:
    from omegaconf import DictConfig

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
    parser.set_defaults(command=command, passes_on=False, runs_file=False)
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


@contextlib.contextmanager
def composed_aside(overrides: Sequence[str], *, as_json: bool) -> Iterator[tuple[DictConfig, str]]:
    """The config that overrides compose, and a directory for what it writes, which goes when the block ends.

    Args:
        overrides: As ``train`` takes them.
        as_json: Whether standard output is for JSON alone; what else is printed in the block goes to standard error.
    """
    aside = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
    with (
        aside,
        working_directory_importable(),
        tempfile.TemporaryDirectory() as folder,
        composed(overrides, folder) as cfg,
    ):
        yield cfg, folder
