"""``.tflite`` files in the interpreter for microcontrollers, which computes as it does on the device.

Needs the package tflite-micro, which exists for Linux on x86.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_compress.errors import CompressionError
from lightning_compress.export.litert.flatbuffer import parsed

_ROOM = 1 << 26
"""Bytes of arena that the interpreter gets here, of which it says how many it used."""
_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")
_MISSING = re.compile(r"Didn't find op for builtin opcode '(\w+)'")


@dataclass(frozen=True)
class MicroMemory:
    """What a file needs on a microcontroller.

    Attributes:
        flash: Bytes of the file; the interpreter's code and the application's come on top.
        arena: Bytes of RAM for activations and the interpreter's own state, whose structures are smaller on 32 bits
            than here; ``None`` where it does not run.
        unsupported: The operator for which the interpreter has no kernel, if it lacks one.
        error: Why it does not run.
    """

    flash: int
    arena: int | None
    unsupported: tuple[str, ...] = ()
    error: str | None = None


def has_micro() -> bool:
    """Whether the interpreter is installed."""
    return importlib.util.find_spec("tflite_micro") is not None


def micro_memory(path: str | Path) -> MicroMemory:
    """Run a file once on zeros, in a process of its own, and read what the interpreter says of its memory.

    Args:
        path: The file.

    Raises:
        CompressionError: The interpreter is not installed.
    """
    refuse_missing_micro("micro_memory")
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(path)], capture_output=True, text=True, errors="replace", check=False
    )
    size = Path(path).stat().st_size
    total = _TOTAL.search(done.stderr)
    if done.returncode == 0 and total is not None:
        return MicroMemory(size, int(total[1]))
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    missing = tuple(dict.fromkeys(_MISSING.findall(done.stderr)))
    return MicroMemory(size, None, missing, lines[-1] if lines else f"it ended with {done.returncode}")


def refuse_missing_micro(field: str) -> None:
    """Check that the interpreter is installed.

    Raises:
        CompressionError: It is not.
    """
    if not has_micro():
        raise CompressionError(
            f"{field}: the interpreter for microcontrollers is not installed, which exists for Linux on x86. Run: "
            f"pip install tflite-micro"
        )


class MicroInterpreter:
    """The interpreter for microcontrollers, called as LiteRT's own is.

    Args:
        path: The file.

    Raises:
        CompressionError: It is not installed, or cannot load the file.
    """

    def __init__(self, path: str | Path) -> None:
        refuse_missing_micro("MicroInterpreter")
        # Apart first: with too little memory the interpreter ends its process.
        if (found := micro_memory(path)).arena is None:
            missing = f"it has no kernel for {', '.join(found.unsupported)}" if found.unsupported else found.error
            raise CompressionError(f"{path}: the interpreter for microcontrollers cannot run this file: {missing}.")
        from tflite_micro.python.tflite_micro import runtime

        self._interpreter = runtime.Interpreter.from_file(str(path), arena_size=_ROOM)
        graph = parsed(Path(path).read_bytes()).subgraphs[0]
        inputs, outputs = self._interpreter.get_input_details, self._interpreter.get_output_details
        self._inputs = [{**inputs(index), "index": index} for index in range(len(graph.inputs))]
        self._outputs = [{**outputs(index), "index": index} for index in range(len(graph.outputs))]

    def get_input_details(self) -> list[dict[str, Any]]:
        """Of every input; ``index`` counts inputs alone."""
        return self._inputs

    def get_output_details(self) -> list[dict[str, Any]]:
        """Of every output; ``index`` counts outputs alone."""
        return self._outputs

    def set_tensor(self, index: int, value: np.ndarray[Any, Any]) -> None:
        """Set an input."""
        self._interpreter.set_input(value, index)

    def get_tensor(self, index: int) -> np.ndarray[Any, Any]:
        """Get an output."""
        found: np.ndarray[Any, Any] = self._interpreter.get_output(index)
        return found

    def invoke(self) -> None:
        """Run."""
        self._interpreter.invoke()


def _run(path: str) -> None:
    from tflite_micro.python.tflite_micro import runtime

    interpreter = runtime.Interpreter.from_file(path, arena_size=_ROOM)
    interpreter.invoke()
    interpreter.print_allocations()


if __name__ == "__main__":
    _run(sys.argv[1])
