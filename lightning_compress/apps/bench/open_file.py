"""Opens a written file in its runtime, to be called with any batch size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lightning_compress.errors import CompressionError
from lightning_compress.export.onnx.session import open_session

Call = Callable[[], Any]
"""One run of a file, with inputs that were made before."""


_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


@contextmanager
def opened(
    path: Path, *, threads: int = 1, dims: Mapping[str, int] | None = None, trust: bool = False
) -> Iterator[Callable[[int], Call]]:
    """Load a file; gives a function of the batch size that makes a call.

    Args:
        path: The file.
        threads: Threads of its runtime; PyTorch's own are set back afterwards.
        dims: As in ``bench``.
        trust: As in ``bench``.
    """
    if path.suffix == ".onnx":
        session = open_session(path, threads=threads)

        def of_session(batch_size: int) -> Call:
            feed = inputs(session, path, batch_size, dims or {})
            return lambda: session.run(None, feed)

        yield of_session
        return
    if path.suffix == ".tflite" and path.is_file():
        yield lambda batch_size: _of_litert(path, batch_size, threads)
        return
    if not path.is_file():
        raise CompressionError.field("bench", expected="a file that an export wrote", got=str(path))
    import torch

    from lightning_compress.apps.configuration.saved_config import run_config
    from lightning_compress.apps.trained_run import find_run, read_run
    from lightning_compress.delivery.evaluation import duplicate
    from lightning_compress.export.signatures import called_through
    from lightning_compress.export.verification import deployed_form

    folder = find_run(path)
    with run_config(folder, [], trust=trust, field="bench") as cfg:
        run = read_run(folder, path, cfg, (cfg.get("export") or {}).get("split") or "val", trust=trust)
    reference = called_through(duplicate(run.module), run.entry.name)
    form, _ = deployed_form(path, reference, threads=threads)

    def of_form(batch_size: int) -> Call:
        call = run.entry.repeated(batch_size)
        with torch.inference_mode():
            like = reference(*call.args, **call.kwargs)
        return lambda: form(like, *call.args, **call.kwargs)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield of_form
    finally:
        torch.set_num_threads(before)


def _of_litert(path: Path, batch_size: int, threads: int) -> Call:
    """Runs a LiteRT file, which fixes its batch, on seeded normal floats; integers are zeros."""
    from lightning_compress.export.litert.run import litert_interpreter

    interpreter = litert_interpreter(path, threads=threads)
    rng = np.random.default_rng(0)
    for item in interpreter.get_input_details():
        fixed = int(item["shape"][0]) if len(item["shape"]) else 1
        if fixed != batch_size:
            raise CompressionError.field(
                "bench --batch-size", expected=f"{fixed}, which {path} fixes for {item['name']!r}", got=batch_size
            )
        floats = np.issubdtype(item["dtype"], np.floating)
        value = rng.standard_normal(item["shape"]) if floats else np.zeros(item["shape"])
        interpreter.set_tensor(item["index"], value.astype(item["dtype"]))
    invoke: Call = interpreter.invoke
    return invoke


def inputs(session: Any, path: Path, batch_size: int, dims: Mapping[str, int]) -> dict[str, Any]:
    """Inputs for a session: seeded normal floats, zeros for integers (a valid index everywhere).

    Raises:
        CompressionError: A dimension is free and its size is not given, or the file fixes another batch size.
    """
    rng = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    for item in session.get_inputs():
        if item.type not in _DTYPES:
            raise CompressionError(f"{path}: input {item.name!r} has type {item.type}, which bench cannot make.")
        shape = [_size(size, axis, item.name, path, batch_size, dims) for axis, size in enumerate(item.shape)]
        dtype = _DTYPES[item.type]
        floats = np.issubdtype(dtype, np.floating)
        feed[item.name] = rng.standard_normal(shape).astype(dtype) if floats else np.zeros(shape, dtype)
    return feed


def _size(size: Any, axis: int, name: str, path: Path, batch_size: int, dims: Mapping[str, int]) -> int:
    if axis == 0:
        if isinstance(size, int) and size != batch_size:
            raise CompressionError.field(
                "bench --batch-size", expected=f"{size}, which {path} fixes for {name!r}", got=batch_size
            )
        return batch_size
    if isinstance(size, int):
        return size
    if size not in dims:
        raise CompressionError(
            f"{path}: dimension {axis} of input {name!r} is free ({size}). Give its size with --dim {size}=<n>."
        )
    return dims[size]
