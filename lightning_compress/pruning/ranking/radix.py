"""Floats as integers that order alike, digit by digit."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CHUNK = 1 << 20
"""Elements handled at a time: small enough that the temporaries stay in the processor's cache."""

DIGIT = 1 << 16
"""Values of one digit of 16 bits."""


def chunks(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor's entries in row-major order, some at a time; views where the tensor is contiguous."""
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), CHUNK):
        yield flat[start : start + CHUNK]


def ranked(chunk: Tensor, bits: int, absolute: bool) -> Tensor:
    """Numbers to compare with a threshold."""
    # Widened, since comparing a narrow tensor with a number rounds the number to the narrow type.
    chunk = chunk.to(torch.float64 if bits == 64 else torch.float32)
    return chunk.abs() if absolute else chunk


def histogram(scores: Sequence[Tensor], shift: int, prefix: int, bits: int, absolute: bool) -> Tensor:
    """How often each digit at ``shift`` occurs among the keys that begin with ``prefix``: int64, ``[65536]``."""
    total = torch.zeros(DIGIT, dtype=torch.int64)
    for score in scores:
        partial = torch.zeros(DIGIT, dtype=torch.int64, device=score.device)
        for digits in _digits(score, shift, prefix, bits, absolute):
            partial += torch.bincount(digits, minlength=DIGIT)
        total += partial.cpu()
    return total


def unusual(first: Tensor, bits: int, absolute: bool) -> bool:
    """Whether infinities or NaN are among the scores, from the histogram of their first digits."""
    # Only these have an exponent of all ones.
    exponent = 0x7FF0 if bits == 64 else 0x7F80
    offset = 0 if absolute else 0x8000
    count = int(first[offset + exponent : offset + 0x8000].sum())
    if not absolute:
        count += int(first[: 0x8000 - exponent].sum())
    return count > 0


def value(key: int, bits: int, absolute: bool) -> float:
    """The float that has this key."""
    if not absolute:
        top = 1 << (bits - 1)
        key = key ^ top if key & top else ~key & (2**bits - 1)
    signed = key - 2**bits if key >> (bits - 1) else key
    integer = torch.tensor(signed, dtype=torch.int64 if bits == 64 else torch.int32)
    return float(integer.view(torch.float64 if bits == 64 else torch.float32))


def _digits(score: Tensor, shift: int, prefix: int, bits: int, absolute: bool) -> Iterator[Tensor]:
    first = shift == bits - 16
    if absolute and bits == 32 and score.dtype == torch.float32 and sys.byteorder == "little":
        # The two halves of float32 numbers can be read where they lie.
        for chunk in chunks(score):
            halves = chunk.view(torch.int16)
            top = halves[1::2] & 0x7FFF
            yield top if first else halves[0::2][top == prefix].to(torch.int32) & 0xFFFF
        return
    for chunk in chunks(score):
        key = _key(chunk, bits, absolute)
        if not first:
            key = key[_shifted(key, shift + 16, bits) == prefix]
        yield _shifted(key, shift, bits) & 0xFFFF


def _key(chunk: Tensor, bits: int, absolute: bool) -> Tensor:
    """Integers whose bits, read as an unsigned number, order like the floats."""
    # abs() clears the sign; adding +0.0 turns -0.0 into +0.0, so that both zeros are one value.
    wide = ranked(chunk, bits, absolute)
    key = (wide if absolute else wide + 0.0).view(torch.int64 if bits == 64 else torch.int32)
    if absolute:
        return key
    # Positive numbers get the top bit, negative ones have all bits inverted.
    return key ^ ((key >> (bits - 1)) | -(2 ** (bits - 1)))


def _shifted(key: Tensor, shift: int, bits: int) -> Tensor:
    """Shift right without dragging the sign bit along."""
    return (key >> shift) & (2 ** (bits - shift) - 1) if shift else key
