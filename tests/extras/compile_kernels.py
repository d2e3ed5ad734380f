"""Compile every Triton kernel for a target, and print the size of each: ``compile_kernels.py sm_80 cubin``."""

from __future__ import annotations

import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lightning_compress.pruning.masks import triton_kernel as masks
from lightning_compress.quantization.fake_quantize.gpu import activations, learned, searches, weights
from lightning_compress.quantization.fake_quantize.gpu.arithmetic import EXACT

TILE = {"COLUMNS": 128, "ROWS": 32}
KERNELS: list[tuple[Any, dict[str, Any]]] = [
    (activations._quantize, {"CLIP": True, "MASK": True, "OBSERVE": True, "BLOCK": 4096}),
    (activations._ends, {"CLIP": True, "BLOCK": 4096}),
    (activations._update, {"SYMMETRIC": False, "PROGRAMS": 1024}),
    (activations._write_ends, {"PROGRAMS": 1024}),
    (activations._pass_inside, {"BLOCK": 4096}),
    (searches._tails, {"CLIP": True, "CHUNK": 2048}),
    (searches._take_percentile, {"SYMMETRIC": False, "SIZE": 256}),
    (searches._errors, {"SYMMETRIC": False, "CLIP": True, "BLOCK": 4096}),
    (searches._take_best, {"SYMMETRIC": True, "SIZE": 128}),
    (learned._learn, {"OFFSET": True, "CLIP": True, "BLOCK": 4096}),
    (learned._learned_pass, {"BLOCK": 4096}),
    (learned._sum_up, {"OFFSET": True, "ADD_SCALE": True, "ADD_SHIFT": True, "PROGRAMS": 1024}),
    (weights._part_maxima, TILE),
    (weights._quantize_all, {"GIVEN": False, "RATIO": True, "CUT": True, **TILE}),
    (weights._search_all, TILE),
    (weights._all_positive, {"BLOCK": 1024}),
    (weights._learned_pass, TILE),
    (weights._sum_parts, {"ADD": True, "BLOCK": 128}),
    (masks._clear, {"NARROW": False, "TILE": masks.TILE}),
]
POINTERS = {
    "words_ptr": "*i32", "odd_ptr": "*i32", "codes_ptr": "*i8", "outside_ptr": "*i8", "nonfinite_ptr": "*i64",
    "errors_ptr": "*fp64", "sums_ptr": "*fp64", "table": "*i64", "tiles": "*i64",
}  # fmt: skip
WHOLE = {"n", "count", "chunks", "stride", "rows", "parts", "parts_total"}


def kind_of(name: str, constants: dict[str, Any]) -> str:
    """The type of a kernel's argument, by its name."""
    if name in constants:
        return "constexpr"
    if name in POINTERS or name.endswith("_ptr"):
        return POINTERS.get(name, "*fp32")
    return "i32" if name in WHOLE else "fp32"


def main(target: str, kind: str) -> None:
    gpu = GPUTarget("cuda", int(target[3:]), 32) if target.startswith("sm_") else GPUTarget("hip", target, 64)
    for kernel, constants in KERNELS:
        signature = {name: kind_of(name, constants) for name in kernel.arg_names}
        compiled = triton.compile(ASTSource(kernel, signature, constants), target=gpu, options=EXACT)
        if any("fma.rn.f32" in line and "div" not in line for line in compiled.asm.get("ptx", "").splitlines()):
            raise SystemExit(f"{kernel.__name__} fuses a multiplication and an addition")
        print(kernel.__name__, len(compiled.asm[kind]))


if __name__ == "__main__":
    main(*sys.argv[1:])
