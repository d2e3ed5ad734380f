"""Runs the benchmarks part by part, for at most so many minutes at a time: what is finished is not run again.

    python benchmarks/parts.py --root ~/data                      # or: make benchmarks DATA=~/data
    python benchmarks/parts.py --root ~/data packed_size           # parts by name
    python benchmarks/parts.py --list

Every part keeps its numbers in ``benchmarks/results`` itself. Exit code 75: time is over and parts are left; the same
command goes on. Which parts are finished is remembered for a commit, in ``outputs/benchmarks``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import results
from tasks import TASKS

LEFT = 75
"""Exit code where the same command, run again, goes on; EX_TEMPFAIL of sysexits.h."""

PARTS: dict[str, list[str]] = {
    **{
        name: [f"{name}.py"]
        for name in (
            "import_time", "callback_cost", "quantization_step", "quantization_peers", "pruning_cost",
            "distillation_step", "onnx_latency", "runtime_peers", "packed_size", "packed_fuzz", "resume_soak",
        )
    },
    "runtime_agreement": ["runtime_agreement.py", "--compile", "--root", "ROOT/fashion_mnist"],
    "advised_plan": ["advised_plan.py", "--fashion-mnist", "ROOT/fashion_mnist"],
    "recipe_variants": ["recipe_variants.py", "digits_cnn_sparse80_w8a8"],
    "channel_pruning": ["channel_pruning.py", "--data", "fashion_mnist", "--epochs", "3", "--root", "ROOT"],
    "smallest_lenet5": ["smallest_lenet5.py", "--root", "ROOT"],
    **{f"accuracy_{task}": ["accuracy.py", task, "--root", "ROOT", "--minutes", "MINUTES"] for task in TASKS},
}  # fmt: skip
"""Name → script and arguments. ``ROOT`` stands for the data's directory, ``MINUTES`` for the time that is left."""


def run(name: str, root: str, minutes: float) -> int:
    """Run one part and return its exit code."""
    arguments = [text.replace("ROOT", root).replace("MINUTES", f"{minutes:.1f}") for text in PARTS[name]]
    print(f"== {name}: {' '.join(arguments)}", flush=True)
    script = str(results.ROOT / "benchmarks" / arguments[0])
    return subprocess.run([sys.executable, script, *arguments[1:], "--write"]).returncode


def record() -> Path:
    """The file that lists the finished parts of this commit."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=results.ROOT, capture_output=True, text=True)
    return results.ROOT / "outputs" / "benchmarks" / f"{found.stdout.strip() or 'no-commit'}.done"


def main(arguments: list[str] | None = None) -> int:
    """Run what is left, until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="names; all that are not finished by default")
    parser.add_argument("--root", default="data", help="where the data sets are")
    parser.add_argument("--minutes", type=float, default=50, help="start nothing after these, and stop trainings")
    parser.add_argument("--list", action="store_true", help="print the parts, with a star on those that are finished")
    asked = parser.parse_args(arguments)
    path, until = record(), time.monotonic() + 60 * asked.minutes
    done = path.read_text().split() if path.exists() else []
    if unknown := [name for name in asked.parts if name not in PARTS]:
        parser.error(f"no part is called {unknown[0]}; there are {', '.join(PARTS)}")
    if asked.list:
        print("\n".join(f"{'*' if name in done else ' '} {name}" for name in PARTS))
        return 0
    for name in asked.parts or [name for name in PARTS if name not in done]:
        left = (until - time.monotonic()) / 60
        code = run(name, asked.root, left) if left > 0 else LEFT
        if code == LEFT:
            print(f"Time is over, {name} is not finished: the same command goes on.")
        if code:
            return code
        done.append(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(dict.fromkeys(done)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
