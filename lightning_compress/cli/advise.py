"""``lightning-compress advise``: a plan for a trained model, before long training."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_compress.cli.parser import composed_aside, with_choices
from lightning_compress.errors import CompressionError

if TYPE_CHECKING:
    from lightning_compress.apps.advise.advise import Advice, Request

_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def add_advise(commands: Any) -> None:
    """``advise``: sparsity and bits for each layer, under a budget."""
    from lightning_compress.cli.parser import add_parser

    parser = add_parser(
        commands,
        "advise",
        "Measure the sensitivity of each layer of a trained model, and plan sparsities and bit widths within a budget.",
        run,
        allow_abbrev=False,
        epilog="Exit codes: 0 there is a plan; 1 nothing keeps the budget; 2 wrong use.",
    )
    parser.set_defaults(passes_on=True)
    parser.add_argument("overrides", nargs="*", help="model and data, as train takes them: key=value, group=choice")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="PATH", help="the trained model")
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="answer for a device instead: cortex_m4, pixel, browser, … in conf/device",
    )
    parser.add_argument("--max-size", metavar="SIZE", help="largest packed file: 100KB (1000 bytes each), 96KiB")
    parser.add_argument(
        "--max-bops",
        metavar="COUNT",
        help="most bit operations of a forward: 5%% of float32's (8-bit weights and activations have 6.25%%), or 1.5G",
    )
    parser.add_argument(
        "--criterion",
        choices=("loss", "hessian"),
        default="loss",
        help="what the plan minimizes: the rise of the loss as measured (default), or as the Hessian's trace has it",
    )
    parser.add_argument("--sparsities", metavar="LIST", help="shares of zeros to choose from: 0,0.5,0.9")
    parser.add_argument("--bits", metavar="LIST", help="bit widths to choose from: 2,4,8")
    parser.add_argument("--batches", type=int, default=8, metavar="N", help="training batches to measure with")
    parser.add_argument("--probes", type=int, default=16, metavar="N", help="random vectors for the Hessian's trace")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("plans/experiment/advised.yaml"),
        metavar="PATH",
        help="the experiment to write (default: %(default)s)",
    )
    parser.add_argument("--picture", type=Path, metavar="PATH", help="draw the sensitivities: .svg or .png")


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Measure, plan, print, and write the experiment."""
    given = [*arguments.overrides, *rest]
    if arguments.device is not None:
        return _for_device(arguments, given)
    overrides = with_choices("advise", given, {"pruning": "uniform", "quantization": "w8a8"})
    with composed_aside(overrides, as_json=arguments.json) as (cfg, folder):
        # Imported here, so that --help and a misspelt setting are answered without loading torch.
        from hydra.core.hydra_config import HydraConfig

        from lightning_compress.apps.advise.advise import advise
        from lightning_compress.apps.advise.experiment_yaml import experiment, refuse_path
        from lightning_compress.apps.configuration.settings import drop_unused
        from lightning_compress.foundation.atomic_write import replacing

        refuse_path(arguments.output)
        request, command = _request(arguments), None
        drop_unused(cfg, overrides)
        written = cfg.copy()
        advice = advise(cfg, folder, overrides, request, None if arguments.json else _progress)
        if advice.plan is not None:
            groups = [str(name) for name in HydraConfig.get().runtime.choices]
            lines = _lines(advice, request)
            text, command = experiment(
                advice.plan, written, groups, overrides, request.checkpoint, arguments.output, lines
            )
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            with replacing(arguments.output) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="\n")
    if arguments.picture is not None:
        from lightning_compress.apps.advise.plot import save

        save(advice, request.criterion, arguments.picture)
    if arguments.json:
        output = str(arguments.output) if command else None
        print(json.dumps({**advice.as_dict(request.criterion), "output": output, "command": command}, indent=2))
    else:
        _show(advice, request, arguments.output, command)
    return 0 if advice.plan is not None else 1


def _for_device(arguments: argparse.Namespace, given: Sequence[str]) -> int:
    """Whether the weights fit a device, and the command that makes its file; there is no choice for each layer."""
    from lightning_compress.apps.compare.limits import parse_size
    from lightning_compress.apps.configuration.device import read_device
    from lightning_compress.delivery.dense_baseline import read_dense
    from lightning_compress.report.number_text import size

    device = read_device(arguments.device)
    if not arguments.checkpoint.is_file():
        raise CompressionError.field("--checkpoint", expected="a checkpoint file", got=str(arguments.checkpoint))
    weights = sum(tensor.numel() for tensor in read_dense(arguments.checkpoint, "--checkpoint").values())
    given_size = arguments.max_size or device.max_flash or device.max_size
    most = None if given_size is None else parse_size(given_size)
    fits = most is None or weights <= most
    named = {text.lstrip("+~").partition("=")[0] for text in given}
    settings = [text for text in device.settings if text.partition("=")[0] not in named]
    command = ["lightning-compress", "calibrate", "--checkpoint", str(arguments.checkpoint), *settings, *given]
    if arguments.json:
        found = {"device": device.name, "weights": weights, "max_size": most, "fits": fits}
        print(json.dumps({**found, "command": shlex.join(command) if fits else None}, indent=2))
        return 0 if fits else 1
    limit = "" if most is None else f", at most {size(most)} is allowed"
    print(
        f"{device.name} runs {device.format} files. Its runtime has kernels for 8 bits and gains nothing by zeros, so "
        f"that no layer has a choice. The weights take {size(weights)} there{limit}."
    )
    if not fits:
        print("They do not fit: take a smaller network, or remove whole channels (pruning=channel).")
        return 1
    print(f"See first what 8 bits lose without training, and train only if it is too much:\n  {shlex.join(command)}")
    return 0


def _request(arguments: argparse.Namespace) -> Request:
    from lightning_compress.apps.advise.advise import BITS, SPARSITIES, Request
    from lightning_compress.apps.compare.limits import parse_size

    share, operations = False, None
    if arguments.max_bops is not None:
        operations, share = parse_operations(arguments.max_bops)
    return Request(
        checkpoint=arguments.checkpoint,
        size=None if arguments.max_size is None else parse_size(arguments.max_size),
        bit_operations=operations,
        is_share=share,
        criterion=arguments.criterion,
        sparsities=_numbers(arguments.sparsities, "--sparsities", float) or SPARSITIES,
        bits=_numbers(arguments.bits, "--bits", int) or BITS,
        batches=arguments.batches,
        probes=arguments.probes,
    )


def parse_operations(given: str) -> tuple[float, bool]:
    """Bit operations, and whether they are a share of float32's.

    Example:
        >>> parse_operations("5%"), parse_operations("1.5G")
        ((0.05, True), (1500000000.0, False))
    """
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(%|[kmgt]?)", given.strip().lower())
    if found is None:
        raise CompressionError.field("--max-bops", expected="a share such as 5%, or a number such as 1.5G", got=given)
    if found[2] == "%":
        return float(found[1]) / 100, True
    return float(found[1]) * _COUNTS[found[2]], False


def _numbers(given: str | None, name: str, kind: type) -> list[Any]:
    if given is None:
        return []
    try:
        return [kind(part) for part in given.split(",")]
    except ValueError:
        raise CompressionError.field(name, expected="numbers with commas between them", got=given) from None


def _progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\rmeasured {done} of {total} settings", end="\n" if done == total else "", file=sys.stderr)


def _lines(advice: Advice, request: Request) -> list[str]:
    """What the experiment's file says of itself."""
    from lightning_compress.report.number_text import percent, size

    plan = advice.plan
    assert plan is not None
    limits = [] if request.size is None else [f"a packed file of at most {size(request.size)}"]
    if advice.budget.bit_operations is not None:
        limits.append(
            f"at most {percent(advice.budget.bit_operations / advice.dense_operations, 2)} of float32's bit operations"
        )
    return [
        "A plan by lightning-compress advise: sparsity and bits of each layer for",
        f"{' and '.join(limits)}, by {request.criterion}. Before any training it packs to {size(plan.packed)}.",
    ]


def _show(advice: Advice, request: Request, output: Path, command: Sequence[str] | None) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from lightning_compress.report.number_text import percent, size, times

    console = Console()
    if not console.is_terminal:
        console = Console(width=120)

    def say(line: str, **style: Any) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True, **style)

    plan = advice.plan
    say(f"Measured {advice.evaluations} times over {request.batches} batches, in {advice.seconds:.1f} s.")
    if plan is None:
        assert advice.least is not None
        least, asked = advice.least, advice.budget
        say("Nothing keeps the budget.", style="bold")
        if asked.size is not None and least.size is not None:
            reached = f"{least.size:,.0f} bytes; {asked.size:,.0f} were asked for"
            say(f"  The smallest packed file within reach has {reached}.")
        if asked.bit_operations is not None and least.bit_operations is not None:
            reach, most = (count / advice.dense_operations for count in (least.bit_operations, asked.bit_operations))
            say(f"  The fewest bit operations are {percent(reach, 2)} of float32's; {percent(most, 2)} were asked for.")
        say("  Allow more, offer more with --sparsities and --bits, or take a smaller model.")
        return
    table = Table(box=SIMPLE_HEAD, show_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    for head in ("weights", "sparsity", "bits", "bytes", "expected rise of the loss", "measured alone"):
        table.add_column(head, justify="right")
    for layer, option in plan.layers:
        cost = layer.costs(request.criterion)[layer.options.index(option)]
        table.add_row(
            escape(layer.name),
            f"{layer.numel:,}",
            percent(option.sparsity, 0),
            "float" if option.bits is None else str(option.bits),
            size(option.bytes),
            f"{cost:.4f}",
            f"{option.loss:+.4f}",
        )
    console.print(table)
    ratio = times(advice.dense_bytes / plan.packed)
    say(f"\nPacked as it is: {plan.packed:,} bytes ({ratio} smaller than float32), estimated {plan.estimated:,.0f}.")
    if plan.bit_operations is not None and advice.dense_operations:
        say(f"Bit operations: {percent(plan.bit_operations / advice.dense_operations, 2)} of float32's.")
    say(
        f"Training loss, before any further training: {advice.base:.4f} as it is, {advice.base + plan.expected:.4f} "
        f"expected, {advice.base + plan.measured:.4f} with all layers compressed together."
    )
    say(f"Gap to the best sum of expected rises: {percent(plan.gap, 2)}.")
    if plan.uniform is not None:
        uniform = plan.uniform
        width = "float" if uniform.bits is None else f"{uniform.bits} bits"
        say(
            f"Best setting that is the same for all layers in that budget: {percent(uniform.sparsity)} zeros, {width}: "
            f"loss {advice.base + uniform.loss:.4f}."
        )
    say(f"\nWritten to {output}. Train it with:", style="bold")
    say(f"  {shlex.join(['lightning-compress', *(command or [])])}")
