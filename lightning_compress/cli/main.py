"""The ``lightning-compress`` command. Each subcommand is a module function that adds its parser and runs it.

Exit codes: 0 done; 1 what was asked for does not hold; 2 wrong use; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from lightning_compress import __version__
from lightning_compress.apps.configuration.compose import working_directory_importable
from lightning_compress.apps.configuration.overrides import at_home
from lightning_compress.cli.advise import add_advise
from lightning_compress.cli.bench import add_bench
from lightning_compress.cli.calibrate import add_calibrate
from lightning_compress.cli.compare import add_compare
from lightning_compress.cli.completion import is_completion, line_of_settings, subcommands_for
from lightning_compress.cli.doctor import add_doctor
from lightning_compress.cli.inspect import add_inspect
from lightning_compress.cli.own_process import continue_in_own_process
from lightning_compress.cli.parser import Command, add_parser
from lightning_compress.cli.verify import add_verify
from lightning_compress.cli.wandb_sweep import add_wandb_sweep
from lightning_compress.cli.wandb_workspace import add_wandb_workspace
from lightning_compress.errors import CompressionError

DONE, DOES_NOT_HOLD, WRONG_USE, INTERRUPTED = 0, 1, 2, 130
_CLOSED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments after the program's name; ``None`` takes the process's own, which may go on in a child.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-compress",
        description="Compression-aware training: prune, quantize, export, verify.",
        epilog="Exit codes: 0 done, 1 what was asked for does not hold, 2 wrong use, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(commands)
    given = [at_home(text) for text in (sys.argv[1:] if argv is None else argv)]
    if is_completion(given):
        return _complete(given, list(commands.choices))
    arguments, rest = parser.parse_known_args(given)
    if rest and not arguments.passes_on:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    command: Command = arguments.command
    if argv is None and arguments.runs_file and hasattr(os, "fork"):
        continue_in_own_process(str(arguments.path))
    try:
        return command(arguments, rest)
    except CompressionError as error:
        if arguments.debug:
            traceback.print_exc()
        else:
            from lightning_compress.errors import printable

            print(f"error: {printable(error)}", file=sys.stderr)
        return WRONG_USE
    except OSError as error:
        # A full disk or a closed place, wherever the libraries below met it; anything else is a fault of ours.
        if error.errno not in _CLOSED or arguments.debug:
            raise
        print(f"error: {error.filename or 'A file'}: cannot be written or read ({error.strerror}).", file=sys.stderr)
        return WRONG_USE
    except KeyboardInterrupt as interrupt:
        print(f"\nInterrupted. {interrupt}".rstrip(), file=sys.stderr)
        return INTERRUPTED


def _complete(arguments: list[str], names: list[str]) -> int:
    """Answer a shell's completion, or print what installs it: ``eval "$(lightning-compress -sc install=bash)"``."""
    line = os.environ.get("COMP_LINE", "")
    if any("query=" in text for text in arguments):
        found = subcommands_for(line, names)
        if found is not None:
            print(" ".join(found))
            return DONE
        with line_of_settings(line):
            return train(argparse.Namespace(json=False), arguments)
    return train(argparse.Namespace(json=False), arguments)


def add_train(commands: Any) -> None:
    """``train``: the Hydra application."""
    # The help shows the settings as the given choices compose them; abbreviations would swallow Hydra's options.
    parser = add_parser(
        commands, "train", "Train, compress, export and verify one model.", train, add_help=False, allow_abbrev=False
    )
    parser.set_defaults(passes_on=True)


def train(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Run the main job under Hydra with the arguments that remain."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    from lightning_compress.apps.configuration.settings import COMPOSITION_ERRORS, CONFIG_MODULE, CONFIG_NAME, explain

    if {"-h", "--help"} & set(overrides):
        return _help([text for text in overrides if text not in ("-h", "--help")])
    # Hydra's parser takes overrides on one side of an option only.
    options, overrides = _config_options(overrides)
    overrides = [*options, *sorted(overrides, key=lambda text: text not in ("-m", "--multirun"))]
    outcomes: list[Any] = []
    sweep = any(text in ("-m", "--multirun") for text in overrides)

    def job(cfg: DictConfig) -> float | tuple[float, ...] | None:
        # Imported here, so that --help and a misspelt setting are answered without loading torch.
        from lightning_compress.apps.train import job as train
        from lightning_compress.apps.train import sweep_jobs as jobs

        settings = HydraConfig.get()
        output, given = settings.runtime.output_dir, list(settings.overrides.task)
        if settings.mode == RunMode.MULTIRUN:
            done = jobs.run(cfg, output, settings.sweep.dir, given)
            return None if done is None else done.objective
        outcomes.append(train.run(cfg, output, [*options, *given]))
        return outcomes[-1].objective

    application = hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name=CONFIG_NAME)(job)
    # With JSON, standard output carries nothing else.
    aside = contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext()
    with aside, _process_for_hydra(overrides):
        try:
            application()
        except COMPOSITION_ERRORS as error:
            raise explain(error, [text for text in overrides if not text.startswith("-")]) from error
        except KeyboardInterrupt as interrupt:
            if not sweep:
                raise
            raise KeyboardInterrupt("The same command runs the jobs that are missing.") from interrupt
    if sweep:
        return _show_sweep(as_json=arguments.json)
    for outcome in outcomes:
        if arguments.json:
            print(json.dumps(outcome.as_dict(), indent=2))
        else:
            outcome.show()
    return DOES_NOT_HOLD if any(outcome.failures for outcome in outcomes) else DONE


def _help(overrides: list[str]) -> int:
    """Print what can be set where the given choices are made."""
    from lightning_compress.apps.configuration.compose import composed
    from lightning_compress.apps.configuration.help import help_text

    with working_directory_importable(), composed(overrides, "outputs") as cfg:
        print(help_text(cfg))
    return DONE


def _config_options(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The options that say which config is composed, which Hydra does not count among the overrides; and the rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for short, name in (("-cp", "path"), ("-cn", "name"), ("-cd", "dir")):
        parser.add_argument(f"--config-{name}", short, dest=name)
    given, rest = parser.parse_known_args(arguments)
    return [text for name, value in vars(given).items() if value for text in (f"--config-{name}", value)], rest


@contextlib.contextmanager
def _process_for_hydra(overrides: list[str]) -> Iterator[None]:
    """What Hydra reads from the process: arguments, and errors as exceptions in place of ``sys.exit(1)``.

    The working directory is importable meanwhile, for ``model._target_=my_module.MyModel``.
    """
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    # Hydra's completion registers for the program of this name, its help shows it.
    sys.argv = ["lightning-compress" if is_completion(overrides) else "lightning-compress train", *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with working_directory_importable():
            yield
    finally:
        sys.argv = argv
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _show_sweep(*, as_json: bool) -> int:
    """One line for each job in the directory of the sweep that just ended, in this process or others."""
    from lightning_compress.apps.train.sweep_jobs import LastSweep, read_jobs

    if LastSweep.directory is None:
        return DONE
    folder, found = LastSweep.directory, read_jobs(LastSweep.directory)
    fine = all(job["status"] == "finished" and not job["failures"] for job in found)
    if as_json:
        print(json.dumps({"sweep_dir": str(folder), "jobs": found}, indent=2))
        return DONE if fine else DOES_NOT_HOLD
    for job in found:
        if job["status"] == "finished":
            print(f"Written to {folder / job['name']}")
            for failure in job["failures"]:
                print(f"  Does not hold: {failure}")
        else:
            print(f"{job['status'].capitalize()}: {folder / job['name']}  {job['error'] or ''}".rstrip())
    finished = sum(job["status"] == "finished" for job in found)
    command = shlex.join(["lightning-compress", "compare", str(folder)])
    print(f"{finished} of {len(found)} jobs are finished. Choose among them: {command}")
    return DONE if fine else DOES_NOT_HOLD


COMMANDS = (
    add_train,
    add_doctor,
    add_advise,
    add_calibrate,
    add_compare,
    add_bench,
    add_inspect,
    add_verify,
    add_wandb_sweep,
    add_wandb_workspace,
)
"""Functions that each add one subcommand."""


if __name__ == "__main__":
    sys.exit(main())
