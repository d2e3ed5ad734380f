"""A zoo of public architectures: each pruned, trained with quantization, written, run, compared and loaded again.

    python benchmarks/zoo.py --write                      # what is missing in benchmarks/results/zoo.json
    python benchmarks/zoo.py --write --only "timm: test_resnet" "paper: TCN"
    python benchmarks/zoo.py --quick                      # those that need PyTorch alone, nothing written
    python benchmarks/zoo.py --page                       # the documentation's page from the result file

One process for each architecture, with a limit of time and memory; its row is merged into the result file when it
ends, so that a run can be stopped and goes on where it was. ``--again`` measures rows that are there already, and
``--failed`` those of them that are not whole. ``make zoo`` installs what the architectures come from, and runs all.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import architectures
import results
import tables
import torch
import zoo_job

from lightning_compress.export import to_onnx
from lightning_compress.foundation.atomic_write import replacing

SECONDS, GIGABYTES = 300, 10
WAITING = 10
HIGH = 0.95
RESULT = results.FOLDER / "zoo.json"
PAGE = results.ROOT / "docs" / "zoo.md"
PACKAGES = {
    "diffusers": "diffusers.models",
    "monai": "monai.networks.nets",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "timm": "timm",
    "torch": "torch",
    "torch-geometric": "torch_geometric.nn",
    "torchvision": "torchvision.models",
    "transformers": "transformers",
    "ultralytics": "ultralytics.nn.tasks",
}
"""Distribution → what an architecture of it imports."""
COLUMNS = {
    "network": "network",
    "weights": "parameters",
    "onnx": "ONNX",
    "packed": "packed",
    "steps": ("largest difference, 8-bit steps", ".2f"),
    "share": ("integer share", ".2f"),
    "version": "from",
    "date": "date",
}

Row = dict[str, Any]


def measured(name: str, seconds: float) -> Row:
    """The row of one architecture, from a process of its own that may take some seconds of the processor."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "row.json"
        process = multiprocessing.get_context("fork").Process(target=_in_process, args=(name, target, seconds))
        process.start()
        process.join(WAITING * seconds)
        if process.is_alive():
            process.kill()
            process.join()
        late = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        reason = f"not done after {seconds:.0f} s" if late else f"the process ended with {process.exitcode}"
        row = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {"network": name}
    if row.get("stage") != "done":
        row.setdefault("error", reason)
    return {**row, "whole": whole(row), "date": results.today(), "commit": commit()}


def _in_process(name: str, target: Path, seconds: float) -> None:
    memory = GIGABYTES * 2**30
    # Of the processor, so that a loaded machine changes nothing.
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    zoo_job.main(name, target)


def load(names: Sequence[str]) -> None:
    """Import what the processes of these architectures need before they are forked: most of their time otherwise."""
    known = architectures.all_architectures()
    for package in sorted({known[name].distribution for name in names}):
        importlib.import_module(PACKAGES[package])
    with tempfile.TemporaryDirectory() as folder:
        to_onnx(torch.nn.Linear(2, 2), torch.zeros(2, 2), Path(folder) / "model.onnx")


def whole(row: Mapping[str, Any]) -> bool:
    """Written in both forms, equal in the runtime, loaded to the same outputs, and the network's keys as they were."""
    return row.get("stage") == "done" and all(row.get(key) for key in ("packed", "equal", "loaded", "keys"))


def commit() -> str | None:
    """Of this checkout, so that a row says what it was measured with."""
    done = subprocess.run(["git", "-C", results.ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None


def rows() -> dict[str, Row]:
    """What the result file holds."""
    if not RESULT.is_file():
        return {}
    return {row["network"]: row for row in json.loads(RESULT.read_text(encoding="utf-8"))["rows"]}


def merge(row: Row) -> None:
    """Put a row into the result file, in the order of the zoo."""
    found = {**rows(), row["network"]: row}
    ordered = [found[name] for name in architectures.all_architectures() if name in found]
    results.write("zoo", ordered, columns=COLUMNS, seeds=[0], threads=1, notes=[summary(ordered)])


def summary(found: Sequence[Mapping[str, Any]]) -> str:
    """The zoo's numbers in one line."""
    shares = [row["share"] for row in found if row.get("share") is not None]
    told = f"{sum(row['whole'] for row in found)} of {len(found)} architectures whole"
    if not shares:
        return f"{told}."
    high = sum(share >= HIGH for share in shares)
    refused = sum(bool(row.get("refused")) for row in found)
    of_the_rest = f", {refused} refused before training" if refused else ""
    return (
        f"{told}{of_the_rest}; integer share of multiply-adds: median {statistics.median(shares):.2f}, at least {HIGH} "
        f"in {high} of {len(shares)} written."
    )


def installed(architecture: architectures.Architecture) -> bool:
    """Whether the distribution that an architecture comes from is here."""
    try:
        return bool(version(architecture.distribution))
    except PackageNotFoundError:
        return False


def page(found: Sequence[Mapping[str, Any]]) -> str:
    """The documentation's page: a row for each architecture."""
    known = architectures.all_architectures()
    missing = len(known) - len(found)
    content = json.loads(RESULT.read_text(encoding="utf-8"))
    machine, versions = content["machine"], content["versions"]
    table = [
        "| network | parameters | ONNX | packed, loaded | keys | largest difference | default session | layer by layer "
        "| integer share | sparsity of all weights | in float |",
        "|---|---:|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    table += [f"| {' | '.join(_cells(row))} |" for row in found]
    failed = [f"- **{row['network']}** ({_stage(row)}): {_escaped(row['error'])}" for row in _failed(found)]
    low = [
        f"- **{row['network']}**, {row['share']:.2f}: {_escaped(row['reasons'])}"
        for row in found
        if row.get("share") is not None and row["share"] < HIGH
    ]
    return "\n".join(
        [
            "# The zoo: networks that others wrote",
            "",
            "Public architectures at small sizes, with random weights, none of them changed: each is pruned to 70 %, "
            "trained for 16 steps with 8-bit weights and activations, written as ONNX and packed, run in ONNX Runtime "
            "on inputs that it was not trained on, compared with the trained model, and loaded again.",
            "",
            summary(found),
            "",
            *([f"{missing} of the zoo's {len(known)} architectures are not measured yet.", ""] if missing else []),
            "- **ONNX**: written with a free or a fixed batch size, or not.",
            "- **packed, loaded**: written, and loaded into a new network with the same outputs.",
            "- **keys**: names in `state_dict` and classes of modules are those of before.",
            "- **largest difference**: of any value of any output from the trained model's, in 255ths of the output's "
            "span, with the share of values that are more than one such step away; **default session**: the same in "
            "a session with default options.",
            "- **layer by layer**: a file is equal if at most 1 % of its outputs' values are more than one step away. "
            "Where rounding that falls to the other side of a tie goes far through later layers, it is compared layer "
            "by layer: whatever reads a quantized tensor in the file is given the trained model's integers, and no "
            "integer that it makes of them may be off by more than one, nor more than 1 % of a tensor's be other than "
            "the trained model's, which is the largest share shown here; its outputs are compared as before.",
            "- **integer share**: multiply-adds that ONNX Runtime does in integers, of all.",
            "- **sparsity of all weights**: zeros in all parameters of two dimensions or more.",
            "- **in float**: the kernels that do the rest, with their share.",
            "",
            *table,
            "",
            *(["## Not whole", "", *failed, ""] if failed else []),
            *([f"## Integer share below {HIGH}", "", *low, ""] if low else []),
            "## What a training step costs",
            "",
            "Quantization adds a cost by the call, which no batch changes, and passes over memory. Where tensors are "
            "small the first is most of it; where a network mostly moves memory (depthwise convolutions, norms), the "
            "second.",
            "",
            "<!-- results:zoo_step -->",
            f"{tables.table('zoo_step')}<!-- /results:zoo_step -->",
            "",
            "## How this was measured",
            "",
            f"{machine['processor']}, 1 thread, PyTorch {versions['torch']}, ONNX Runtime {versions['onnxruntime']}; "
            f"each row has its date in `benchmarks/results/zoo.json`. `make zoo` measures what is missing there, and "
            f"writes this page.",
            "",
        ]
    )


def _stage(row: Mapping[str, Any]) -> str:
    return "refused before training" if row.get("refused") else str(row.get("stage", "–"))


def _failed(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [{"error": "its outputs differ", **row} for row in found if not row["whole"]]


def _cells(row: Mapping[str, Any]) -> list[str]:
    def mark(value: Any) -> str:
        return "–" if value is None else "yes" if value else "no"

    def number(key: str) -> str:
        return "–" if row.get(key) is None else f"{row[key]:.2f}"

    weights = "–" if row.get("weights") is None else f"{row['weights']:,d}"
    loaded = mark(row.get("packed") and row.get("loaded"))
    return [
        row["network"], weights, row.get("batch") or "no", loaded, mark(row.get("keys")), _difference(row, ""),
        _difference(row, "default_"), "–" if "layers" not in row else f"{row['layers_other']:.2%}", number("share"),
        number("sparsity_of_all"), row.get("float_kernels") or "–",
    ]  # fmt: skip


def _difference(row: Mapping[str, Any], session: str) -> str:
    if row.get(f"{session}steps") is None:
        return "–"
    far = 1 - row[f"{session}near"]
    return f"{row[f'{session}steps']:.2f}" + (f" ({far:.2%})" if far else "")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def wanted(options: argparse.Namespace) -> list[str]:
    """The names to measure now."""
    known, found = architectures.all_architectures(), rows()
    if unknown := [name for name in options.only or () if name not in known]:
        raise SystemExit(f"no architecture is called {', '.join(map(repr, unknown))}; --list shows them")
    names = [
        name
        for name, architecture in known.items()
        if (not options.only or name in options.only)
        and (not options.quick or architecture.quick)
        and installed(architecture)
    ]
    if options.only:
        return sorted(names, key=options.only.index)
    if options.quick or options.again:
        return names
    return [name for name in names if name not in found or (options.failed and not found[name]["whole"])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these architectures, in this order")
    parser.add_argument("--quick", action="store_true", help="those that need PyTorch alone")
    parser.add_argument("--again", action="store_true", help="rows of the result file, too")
    parser.add_argument("--failed", action="store_true", help="rows of the result file that are not whole, too")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit of one architecture, processor time")
    parser.add_argument("--write", action="store_true", help="merge each row into benchmarks/results/zoo.json")
    parser.add_argument("--page", action="store_true", help="write docs/zoo.md from the result file")
    options = parser.parse_args()
    if options.list:
        print("\n".join(architectures.all_architectures()))
        return 0
    found = []
    torch.set_num_threads(1)
    names = [] if options.page and not options.write else wanted(options)
    load(names)
    for name in names:
        found.append(measured(name, options.seconds))
        row = found[-1]
        print(f"{'whole' if row['whole'] else 'FAILS'}  {name}: {row.get('error') or row.get('share')}", flush=True)
        if options.write:
            merge(row)
    if options.page:
        with replacing(PAGE) as temporary:
            temporary.write_text(page(list(rows().values())), encoding="utf-8")
    return 1 if options.quick and not all(row["whole"] for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
