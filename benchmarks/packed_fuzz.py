"""Damage packed files 20,000 times and kill their writer 50 times: nothing may crash, hang, or take great memory.

    python benchmarks/packed_fuzz.py [--cases 20000] [--kills 50]

Half of the cases are blind damage (bit flips, cuts, growth, moved pieces, huge headers), half are lies with right
checksums by one who knows the format (wrong types, shapes, references, names, tables, chunks, bombs). Each is loaded
into a model and inspected without one, and must end in a CompressionError or in a load; a blindly damaged file that
loads must give the weights of the true one. The peak of the process in a case, by the kernel's own high-water mark, may
be at most twice that of the true file. Exits with 1 if anything else happens.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import results
import torch

from lightning_compress import quantization
from lightning_compress.apps.inspect.inspect import inspect
from lightning_compress.errors import CompressionError
from lightning_compress.export.packed.save_load import load_packed, save_packed
from lightning_compress.foundation.atomic_write import replacing
from lightning_compress.models.resnet import ResNet


def true_file(directory: Path) -> Path:
    torch.manual_seed(0)
    net = ResNet(3, 10, depth=8)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(torch.rand_like(parameter) < 0.3)
    quantization.prepare(net, example_inputs=torch.randn(1, 3, 32, 32), overrides={"fc": None})
    net.train()(torch.randn(4, 3, 32, 32))
    return save_packed(net, directory / "true.packed").path


def kilobytes(field: str) -> int:
    """A field of /proc/self/status: ``VmRSS`` now, ``VmHWM`` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def read(path: Path, model: ResNet) -> tuple[list[CompressionError], int]:
    """Load a file into a model and inspect it without one; gives what was refused, and the process's peak meanwhile."""
    refused = []
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    for use in (lambda: load_packed(path, model), lambda: inspect(path)):
        try:
            use()
        except CompressionError as error:
            refused.append(error)
    quantization.strip(model)
    return refused, kilobytes("VmHWM")


def fuzz(directory: Path, count: int) -> tuple[bool, dict[str, Any]]:
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "export" / "packed"))
    from packed_mutations import Liar, cases

    true = true_file(directory)
    expected = load_packed(true, ResNet(3, 10, depth=8)).state_dict()
    outcomes: collections.Counter[str] = collections.Counter()
    slowest, highest, path, fine = 0.0, 0, directory / "case.packed", True
    liar = Liar(true, directory / "scratch")
    list(cases(true.read_bytes(), liar, 100, seed=1))  # the bombs are made once, outside of the measure
    data, model = true.read_bytes(), ResNet(3, 10, depth=8)
    before = kilobytes("VmRSS")
    assert not read(true, model)[0]
    true_peak = read(true, model)[1]
    started = time.perf_counter()
    for k, (is_lie, case) in enumerate(cases(data, liar, count, seed=0)):
        path.write_bytes(case)
        start = time.process_time()
        refused, peak = read(path, model)
        slowest, highest = max(slowest, time.process_time() - start), max(highest, peak)
        if refused:
            named = all(str(error).startswith(str(path)) for error in refused)
            outcomes["refused" if named else "refused without naming the file"] += 1
            fine &= named
        else:
            same = all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
            outcomes["loaded, as the true file" if same else "loaded, other weights"] += 1
            fine &= same or is_lie
        if k % 2000 == 1999:
            print(f"  {k + 1} cases, {time.perf_counter() - started:.0f} s", flush=True)
    for outcome, number in outcomes.most_common():
        print(f"{number:6d} {outcome}")
    print(f"slowest case {slowest:.2f} s of processor time; true file {true.stat().st_size / 1000:.0f} KB")
    print(
        f"peak of the process: {true_peak / 1000:.0f} MB for the true file, at most {highest / 1000:.0f} MB for a case "
        f"({before / 1000:.0f} MB before any)"
    )
    fine = fine and slowest < 5 and highest <= 2 * true_peak
    row = {"cases": count, **outcomes, "slowest_s": round(slowest, 2), "peak_ratio": round(highest / true_peak, 2)}
    return fine, {**row, "fine": fine}


def write_for_ever(target: Path, content: bytes) -> None:
    while True:
        with replacing(target) as temporary:
            temporary.write_bytes(content)


def kills(directory: Path, count: int) -> bool:
    target, old, new = directory / "kills" / "file", b"old!" * 250_000, b"new!" * 500_000
    target.parent.mkdir()
    whole: collections.Counter[str] = collections.Counter()
    for attempt in range(count):
        target.write_bytes(old)
        child = multiprocessing.get_context("fork").Process(target=write_for_ever, args=(target, new))
        child.start()
        time.sleep(0.002 + 0.0007 * attempt)
        child.kill()
        child.join()
        whole[{old: "old", new: "new"}.get(target.read_bytes(), "BROKEN")] += 1
    left = len(os.listdir(target.parent)) - 1
    with replacing(target) as temporary:
        temporary.write_bytes(b"fine")
    print(
        f"{count} kills: {dict(whole)}; {left} temporary files at the end, {len(os.listdir(target.parent)) - 1} "
        f"after the next write"
    )
    return "BROKEN" not in whole and len(os.listdir(target.parent)) == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/packed_fuzz.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        whole = kills(Path(directory), arguments.kills)
        fine, row = fuzz(Path(directory), arguments.cases)
    fine &= whole
    if arguments.write:
        row |= {"kills": arguments.kills, "whole": whole}
        columns = {
            "cases": "damaged files",
            "fine": "all refused or loaded",
            "peak_ratio": ("largest peak ÷ that of the true file", ".2f"),
            "kills": "killed writers",
            "whole": "all whole",
        }
        results.write("packed_fuzz", [row], columns=columns, seeds=[0])
    print("fine" if fine else "NOT FINE")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
