"""One grammar for naming layers, used by pruning, quantization, distillation and reports alike.

A pattern is an exact module or parameter name (``"encoder.fc1"``), ``re:<regex>`` over the full name, or a class
name (``"Linear"``; subclasses count). Exact beats regex beats class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import nn

from lightning_compress.errors import CompressionError, closest

T = TypeVar("T")

EXACT, REGEX, CLASS, DEFAULT = 3, 2, 1, 0


@dataclass(frozen=True)
class Candidate(Generic[T]):
    """Something a pattern can name.

    Attributes:
        names: Full names it answers to, the canonical one first (``("fc.weight", "fc")``).
        module: The owning module; its class names count.
        value: What the caller wants back.
        default: Whether it is selected when no targets are given.
    """

    names: tuple[str, ...]
    module: nn.Module
    value: T
    default: bool = True


@dataclass(frozen=True)
class Selection(Generic[T]):
    """A candidate that was selected, with the settings that override the common ones for it."""

    name: str
    value: T
    overrides: Mapping[str, Any]


def rank(pattern: str, candidate: Candidate[Any], field: str) -> int | None:
    """How strongly a pattern names a candidate: ``EXACT``, ``REGEX``, ``CLASS`` or ``None``."""
    if pattern.startswith("re:"):
        try:
            regex = re.compile(pattern[3:])
        except re.error as error:
            raise CompressionError.field(
                field, expected="a valid regular expression after 're:'", got=pattern, fix=str(error)
            ) from None
        return REGEX if any(regex.fullmatch(name) for name in candidate.names) else None
    if pattern in candidate.names:
        return EXACT
    return CLASS if any(pattern == base.__name__ for base in type(candidate.module).__mro__) else None


def select(
    candidates: Sequence[Candidate[T]],
    *,
    targets: Iterable[str] | None = None,
    ignore: Iterable[str] = (),
    overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
    field: str,
) -> list[Selection[T]]:
    """Select candidates by pattern, in the order in which they come.

    Args:
        candidates: Everything that could be selected.
        targets: Patterns to select; ``None`` selects the defaults.
        ignore: Patterns to leave out; a target that names a candidate more exactly wins.
        overrides: Pattern → settings for what it names among the selected; ``None`` as settings leaves it out.
        field: Name of the owner (``"GradualMagnitudePruning"``), for messages.

    Raises:
        CompressionError: A pattern is malformed or matches nothing, or an override names nothing that is selected.

    Example:
        >>> fc = Candidate(("fc.weight", "fc"), nn.Linear(2, 2), value="fc")
        >>> [s.name for s in select([fc], targets=["Linear"], field="demo")]
        ['fc.weight']
    """
    chosen_targets = _patterns(targets, f"{field}.targets") if targets is not None else None
    ignored = _patterns(ignore, f"{field}.ignore")
    overridden = dict(overrides or {})
    for patterns, part in ((chosen_targets or [], "targets"), (ignored, "ignore"), (overridden, "overrides")):
        for pattern in patterns:
            _refuse_unmatched(pattern, candidates, f"{field}.{part}")

    selected = []
    unused = {pattern for pattern, settings in overridden.items() if settings is not None}
    for candidate in candidates:
        if chosen_targets is None:
            wanted = DEFAULT if candidate.default else None
        else:
            wanted = _best(chosen_targets, candidate, f"{field}.targets")
        unwanted = _best(ignored, candidate, f"{field}.ignore")
        settings: Mapping[str, Any] | None = {}
        strongest = -1
        for pattern, value in overridden.items():
            strength = rank(pattern, candidate, f"{field}.overrides")
            if strength is not None and (wanted is not None or unwanted is not None):
                unused.discard(pattern)
            if strength is not None and strength >= strongest:
                strongest, settings = strength, value
        if wanted is None or settings is None or (unwanted is not None and unwanted >= wanted):
            continue
        selected.append(Selection(candidate.names[0], candidate.value, settings))
    for pattern in sorted(unused):
        raise CompressionError.field(
            f"{field}.overrides",
            expected="patterns that name a selected layer, since overrides change settings and select nothing",
            got=pattern,
            fix="Name the layer in targets, too.",
        )
    return selected


def _patterns(patterns: Iterable[str], field: str) -> list[str]:
    if isinstance(patterns, str):
        raise CompressionError.field(field, expected="a list of patterns", got=patterns, fix=f"Write [{patterns!r}].")
    found = list(patterns)
    for pattern in found:
        if not isinstance(pattern, str) or not pattern:
            raise CompressionError.field(field, expected="a list of non-empty strings", got=pattern)
    return found


def _best(patterns: Iterable[str], candidate: Candidate[Any], field: str) -> int | None:
    return max((r for p in patterns if (r := rank(p, candidate, field)) is not None), default=None)


def _refuse_unmatched(pattern: str, candidates: Sequence[Candidate[Any]], field: str) -> None:
    if any(rank(pattern, candidate, field) is not None for candidate in candidates):
        return
    # Layers before their parameters.
    names = [name for candidate in candidates for name in candidate.names[1:]]
    names += [candidate.names[0] for candidate in candidates]
    classes = sorted({type(candidate.module).__name__ for candidate in candidates})
    raise CompressionError.field(
        field,
        expected="a pattern that matches a layer: an exact name, 're:<regex>' or a class name",
        got=pattern,
        fix=closest(pattern.removeprefix("re:"), [*names, *classes]),
    )
