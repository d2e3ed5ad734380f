"""The coder of the packed format: compiled for this machine where there is a compiler, or else from ``constriction``.

Both give the same bytes. The compiled one loads large files faster (``benchmarks/packed_size.py``); it is built once,
when the first large tensor comes.
"""

from __future__ import annotations

import ctypes
import logging
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_compress.errors import CompressionError
from lightning_compress.foundation.compile_cpp import build

WORTH_BUILDING = 1 << 18
"""Symbols to encode, or bytes to decode, for which compiling, two seconds once a machine, is worth it."""
BLOCK = 1 << 20
"""Symbols at a time: ``constriction`` takes and gives 4 bytes a symbol, which are narrowed before the next block."""

# Plain integer arithmetic: nothing that only this processor has, and no library of threads.
_FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC")
Frequencies = NDArray[np.int64]
_log = logging.getLogger(__name__)
_lock = threading.Lock()
_library: ctypes.CDLL | None = None
_failed = False
_mode: Literal["auto"] | bool = "auto"


def use_compiled(mode: Literal["auto"] | bool) -> None:
    """Say which coder is used.

    Args:
        mode: ``"auto"`` compiles for the first run of at least ``WORTH_BUILDING`` symbols and falls back where that
            fails, ``True`` compiles now, ``False`` always takes ``constriction``.

    Raises:
        CompressionError: ``True``, and there is no C++ compiler, or it failed.
    """
    global _mode
    _mode = mode
    if mode is True and _load() is None:
        raise CompressionError("rans.use_compiled(True): there is no C++ compiler here, or it failed.")


def encode(runs: Sequence[tuple[NDArray[Any], Frequencies]]) -> NDArray[np.uint32]:
    """Code runs of symbols, each with its model, into words; the last of them is not zero."""
    lib = _for(sum(symbols.size for symbols, _ in runs))
    return _with_constriction(runs) if lib is None else _compiled(lib, runs)


class Decoder:
    """Gives back the symbols of ``encode`` in their order.

    Args:
        words: What it gave.
    """

    def __init__(self, words: NDArray[np.uint32]) -> None:
        self._lib = _for(words.nbytes)
        if self._lib is None:
            self._coder = _stack().AnsCoder(words)
            return
        self._words = np.ascontiguousarray(words, np.uint32)
        self._left, self._state = self._words.size, ctypes.c_uint64(0)
        while self._left and self._state.value < 1 << 32:
            self._left -= 1
            self._state.value = self._state.value << 32 | int(self._words[self._left])

    def take(self, count: int, model: Frequencies) -> NDArray[np.uint8]:
        """The next symbols; the caller has checked that so many fit in memory.

        Raises:
            CompressionError: The model is none.
        """
        out = np.zeros(count, np.uint8)
        if self._lib is None:
            categorical = _categorical(model)
            for start in range(0, count, BLOCK):
                block = out[start : start + BLOCK]
                block[:] = self._coder.decode(categorical, block.size)
            return out
        model = np.ascontiguousarray(model, np.int64)
        self._left = _counted(
            self._lib.rans_decode(
                self._words.ctypes.data, self._left, ctypes.byref(self._state), model.ctypes.data, len(model),
                out.ctypes.data, count,
            )
        )  # fmt: skip
        return out

    def is_empty(self) -> bool:
        """Whether everything was used."""
        return self._coder.is_empty() if self._lib is None else self._left == 0 and self._state.value == 0


def _compiled(lib: ctypes.CDLL, runs: Sequence[tuple[NDArray[Any], Frequencies]]) -> NDArray[np.uint32]:
    state, parts = ctypes.c_uint64(0), []
    for symbols, frequencies in reversed(runs):
        model = np.ascontiguousarray(frequencies, np.int64)
        for start in reversed(range(0, symbols.size, BLOCK)):
            block = _bytes(symbols[start : start + BLOCK])
            words = np.empty(block.size, np.uint32)
            count = _counted(
                lib.rans_encode(
                    words.ctypes.data, ctypes.byref(state), model.ctypes.data, len(model), block.ctypes.data, block.size
                )
            )
            parts.append(words[:count].copy())
    last = np.array([state.value & 0xFFFFFFFF, state.value >> 32], np.uint32)
    return np.concatenate([*parts, np.trim_zeros(last, "b")])


def _bytes(symbols: NDArray[Any]) -> NDArray[np.uint8]:
    """Symbols as bytes; none is changed by it."""
    if symbols.dtype.itemsize > 1 and symbols.size and not 0 <= symbols.min() <= symbols.max() <= 255:
        raise CompressionError("The packed format's coder: symbols are whole numbers from 0 to 255.")
    return np.ascontiguousarray(symbols, np.uint8)


def _counted(answer: int) -> int:
    """What the compiled coder answered, if it did its work."""
    if answer < 0:
        raise CompressionError(
            "The packed format's coder: a model has 1 to 256 frequencies, each at least 1, that sum to 2**24, and "
            "every symbol is one of them."
        )
    return answer


def _with_constriction(runs: Sequence[tuple[NDArray[Any], Frequencies]]) -> NDArray[np.uint32]:
    coder = _stack().AnsCoder()
    for symbols, model in reversed(runs):
        # A last-in-first-out coder takes the end first.
        for start in reversed(range(0, symbols.size, BLOCK)):
            coder.encode_reverse(symbols[start : start + BLOCK].astype(np.int32), _categorical(model))
    words: NDArray[np.uint32] = coder.get_compressed()
    return words


def _for(size: int) -> ctypes.CDLL | None:
    """The compiled coder, if it is to be used for so much data."""
    if _mode is False or (_mode == "auto" and size < WORTH_BUILDING):
        return None
    return _load()


def _load() -> ctypes.CDLL | None:
    global _library, _failed
    with _lock:
        if _library is None and not _failed:
            try:
                _library = ctypes.CDLL(str(build(Path(__file__).with_name("rans.cpp"), _FLAGS)))
                p, n, i = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
                _library.rans_decode.argtypes, _library.rans_decode.restype = [p, n, p, p, i, p, n], n
                _library.rans_encode.argtypes, _library.rans_encode.restype = [p, p, p, i, p, n], n
            except (OSError, subprocess.SubprocessError) as error:
                _failed = True
                _log.debug("The coder stays uncompiled: %s", error)
        return _library


def _stack() -> Any:
    import constriction

    return constriction.stream.stack


def _categorical(model: Frequencies) -> Any:
    import constriction

    # With perfect=False the model's frequency of symbol i is exactly 1 + p_i when the p_i are whole numbers that
    # sum to 2**24 minus the number of symbols: no rounding is left to differ between machines or releases.
    return constriction.stream.model.Categorical((model - 1).astype(np.float64), perfect=False)
