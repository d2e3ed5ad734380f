"""Damage packed files 20,000 times and kill their writer 50 times: nothing may crash, hang, or take great memory.

    python benchmarks/packed_fuzz.py [--cases 20000] [--kills 50] [--compiled]

Half of the cases are blind damage (bit flips, cuts, growth, moved pieces, huge headers), half are lies with right
checksums (wrong types, shapes, references, names, tables, bombs). Each must end in a CompressionError or in a load;
a blindly damaged file that loads must give the weights of the true one. Exits with 1 if anything else happens.
The files are small, and so decoded by constriction; --compiled takes the compiled coder of large files.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import results
import torch

from lightning_compress import quantization
from lightning_compress.errors import CompressionError
from lightning_compress.export.packed.codec import rans
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


def peak_kilobytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def fuzz(directory: Path, count: int) -> tuple[bool, dict[str, Any]]:
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "export"))
    from packed_mutations import Liar, cases

    true = true_file(directory)
    before_loading = peak_kilobytes()
    expected = load_packed(true, ResNet(3, 10, depth=8)).state_dict()
    true_peak = peak_kilobytes()
    outcomes: collections.Counter[str] = collections.Counter()
    slowest, path, fine = 0.0, directory / "case.packed", True
    liar = Liar(true, directory / "scratch")
    list(cases(true.read_bytes(), liar, 40, seed=1))  # the bombs are made once, outside of the measure
    data, model = true.read_bytes(), ResNet(3, 10, depth=8)
    start_peak = peak_kilobytes()
    started = time.perf_counter()
    for k, (is_lie, case) in enumerate(cases(data, liar, count, seed=0)):
        path.write_bytes(case)
        start = time.process_time()
        try:
            load_packed(path, model)
        except CompressionError as error:
            named = str(error).startswith(str(path))
            outcomes["refused" if named else "refused without naming the file"] += 1
            fine &= named
        else:
            same = all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
            outcomes["loaded, as the true file" if same else "loaded, other weights"] += 1
            fine &= same or is_lie
        quantization.strip(model)
        slowest = max(slowest, time.process_time() - start)
        if k % 2000 == 1999:
            print(f"  {k + 1} cases, {time.perf_counter() - started:.0f} s", flush=True)
    for outcome, number in outcomes.most_common():
        print(f"{number:6d} {outcome}")
    print(f"slowest case {slowest:.2f} s of processor time; true file {true.stat().st_size / 1000:.0f} KB")
    print(
        f"peak memory {start_peak / 1000:.0f} MB before, {peak_kilobytes() / 1000:.0f} MB after all cases "
        f"(true load: {before_loading / 1000:.0f} to {true_peak / 1000:.0f} MB)"
    )
    # A bomb that went off would take hundreds of megabytes, and nothing else here takes any.
    fine = fine and slowest < 5 and peak_kilobytes() < start_peak + 50_000
    return fine, {"cases": count, **outcomes, "slowest_s": round(slowest, 2), "fine": fine}


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
    parser.add_argument("--compiled", action="store_true", help="decode by the compiled coder")
    arguments = parser.parse_args()
    if arguments.compiled:
        rans.use_compiled(True)
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
            "kills": "killed writers",
            "whole": "all whole",
        }
        results.write("packed_fuzz", [row], columns=columns, seeds=[0])
    print("fine" if fine else "NOT FINE")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
