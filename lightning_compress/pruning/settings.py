"""Settings of pruning, checked as far as possible without a model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_compress.errors import CompressionError, closest
from lightning_compress.pruning.criteria import CRITERIA, CriterionFunction, kind_of, name_of
from lightning_compress.pruning.distributions import DistributionName
from lightning_compress.pruning.patterns import Channel, NOfM, Pattern, parse_pattern
from lightning_compress.pruning.schedule import Curve, ScheduleName, SparsitySchedule, curve
from lightning_compress.timeline import Run, Time, TimePoint, parse

RegrowName = Literal["gradient", "random"]

UPDATES = 50
"""Mask updates between start and end, where ``every`` does not say."""

FLOOR = 0.1
"""What each layer keeps at least of what all layers keep on average, where ``layer_floor`` does not say."""

_LAYER_SETTINGS = ("final_sparsity", "initial_sparsity", "layer_floor", "pattern")


@dataclass(frozen=True)
class Settings:
    """Checked settings of a pruner; the meaning of each is documented at :class:`~.pruner.Pruner`."""

    final_sparsity: float
    initial_sparsity: float
    start: Time
    end: Time
    every: Time | None
    curve: Curve
    schedule_name: str
    distribution: DistributionName
    pattern: Pattern
    criterion: str | CriterionFunction
    regrow: RegrowName | None
    drop_fraction: float
    layer_floor: float | None
    channel_multiple: int
    keep_zeros: bool
    freeze: bool
    targets: tuple[str, ...] | None
    ignore: tuple[str, ...]
    overrides: dict[str, dict[str, Any] | None]
    seed: int
    field: str

    @classmethod
    def check(
        cls,
        *,
        final_sparsity: float | None = None,
        initial_sparsity: float = 0.0,
        start: TimePoint = 0.1,
        end: TimePoint = 0.6,
        every: TimePoint | None = None,
        schedule: ScheduleName | Curve = "cubic",
        distribution: DistributionName = "global",
        pattern: str = "unstructured",
        criterion: str | CriterionFunction = "magnitude",
        regrow: RegrowName | None = None,
        drop_fraction: float = 0.3,
        layer_floor: float | None = None,
        channel_multiple: int = 1,
        keep_zeros: bool = False,
        freeze: bool = False,
        targets: Iterable[str] | None = None,
        ignore: Iterable[str] = (),
        overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
        seed: int = 0,
        field: str,
    ) -> Settings:
        """Check everything that needs no model and no length of the run.

        Raises:
            CompressionError: A setting is out of its range; the message has its full name.
        """
        if freeze:
            if final_sparsity is not None:
                raise CompressionError.field(
                    f"{field}.final_sparsity",
                    expected="no other sparsity setting with freeze=True, which keeps the zeros there are",
                    got=final_sparsity,
                )
            final_sparsity, keep_zeros = 0.0, True
        parsed = parse_pattern(pattern, f"{field}.pattern")
        final = _share(final_sparsity, f"{field}.final_sparsity")
        initial = _share(initial_sparsity, f"{field}.initial_sparsity")
        if initial > final and not freeze:
            raise CompressionError.field(
                f"{field}.initial_sparsity", expected=f"at most final_sparsity ({final})", got=initial
            )
        if not freeze:
            _fits_pattern(parsed, final, f"{field}.final_sparsity")
        if not callable(criterion):
            _one_of(criterion, tuple(CRITERIA), f"{field}.criterion", " or a callable")
        if regrow is not None:
            _one_of(regrow, get_args(RegrowName), f"{field}.regrow", " or None")
            if type(parsed) is not Pattern:
                raise CompressionError.field(
                    f"{field}.regrow", expected="None with a pattern other than 'unstructured'", got=regrow
                )
        if isinstance(parsed, NOfM | Channel) and distribution == "erk":
            raise CompressionError.field(
                f"{field}.distribution",
                expected=f"'uniform' or 'global' with pattern {pattern!r}",
                got=distribution,
            )
        time = {name: parse(point, f"{field}.{name}") for name, point in (("start", start), ("end", end))}
        gap = None if every is None else parse(every, f"{field}.every")
        if gap is not None and gap.value == 0:
            raise CompressionError.field(f"{field}.every", expected="more than zero", got=every)
        if time["start"].unit == time["end"].unit and time["end"].value < time["start"].value:
            raise CompressionError.field(f"{field}.end", expected=f"not before start ({start!r})", got=end)
        if type(channel_multiple) is not int or channel_multiple < 1:
            raise CompressionError.field(
                f"{field}.channel_multiple", expected="a whole number, at least 1", got=channel_multiple
            )
        if channel_multiple > 1 and not isinstance(parsed, Channel):
            raise CompressionError.field(
                f"{field}.channel_multiple", expected=f"1 with pattern {pattern!r}", got=channel_multiple
            )
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise CompressionError.field(f"{field}.seed", expected="an integer", got=seed)
        return cls(
            final_sparsity=final,
            initial_sparsity=initial,
            **time,
            every=gap,
            curve=curve(schedule, f"{field}.schedule"),
            schedule_name=name_of(schedule),
            distribution=_one_of(distribution, get_args(DistributionName), f"{field}.distribution"),
            pattern=parsed,
            criterion=criterion,
            regrow=regrow,
            drop_fraction=_share(drop_fraction, f"{field}.drop_fraction"),
            layer_floor=None if layer_floor is None else _share(layer_floor, f"{field}.layer_floor"),
            channel_multiple=channel_multiple,
            keep_zeros=keep_zeros,
            freeze=freeze,
            targets=None if targets is None else _tuple(targets, f"{field}.targets"),
            ignore=_tuple(ignore, f"{field}.ignore"),
            overrides=_overrides(overrides, field, final, parsed, regrow),
            seed=seed,
            field=field,
        )

    @property
    def needs_gradient(self) -> bool:
        """Whether updates look at gradients, so that these must be there and dense."""
        return kind_of(self.criterion).needs_gradient or self.regrow == "gradient"

    def floor(self, final: float, pattern: Pattern, units: int) -> float:
        """Share of a layer's units that is always kept, where nothing says otherwise for the layer.

        Args:
            final: The layer's sparsity at the end.
            pattern: Its pattern.
            units: How many units it has.
        """
        if self.layer_floor is not None:
            return self.layer_floor
        # Of n:m every group goes in the end, and every layer keeps n of m.
        if isinstance(pattern, NOfM) or self.freeze or not units:
            return 0.0
        # Never more than its part of what all keep, so that the sparsity asked for is always reached.
        return min(math.ceil(round(FLOOR * (1 - final) * units, 6)), math.floor(round((1 - final) * units, 6))) / units

    def resolve(self, run: Run) -> SparsitySchedule:
        """Place the schedule in a run.

        Raises:
            CompressionError: A time point cannot be placed, the order is wrong, or the run ends too early.
        """
        if self.freeze:
            return SparsitySchedule(0.0, 0.0, start=0, end=0, every=1, curve=self.curve)
        start, end = self.start.steps(run), self.end.steps(run)
        if end < start:
            raise CompressionError.field(
                f"{self.field}.end", expected=f"not before start (optimizer step {start})", got=end
            )
        if run.total_steps is not None and end > run.total_steps:
            raise CompressionError.field(
                f"{self.field}.end",
                expected=f"at most the run's {run.total_steps} optimizer steps, or the schedule never finishes",
                got=end,
                fix="Train longer, or let pruning end earlier.",
            )
        every = math.ceil((end - start) / UPDATES) if self.every is None else self.every.length(run)
        schedule = SparsitySchedule(self.initial_sparsity, self.final_sparsity, start, end, max(1, every), self.curve)
        if schedule.at(0) > 0 and isinstance(self.criterion, str) and kind_of(self.criterion).needs_gradient:
            raise CompressionError.field(
                f"{self.field}.start",
                expected=f"at least 1 with criterion={self.criterion!r}: no gradient is known before",
                got=start,
            )
        return schedule


def _share(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        fix = ""
        if isinstance(value, int | float) and 1 < value <= 100:
            fix = f"Write {value / 100:g} for {value:g} percent."
        raise CompressionError.field(field, expected="a share in [0, 1)", got=value, fix=fix)
    return float(value)


def _one_of(value: Any, allowed: tuple[str, ...], field: str, more: str = "") -> Any:
    if value not in allowed:
        raise CompressionError.field(
            field, expected=f"one of {', '.join(allowed)}{more}", got=value, fix=closest(str(value), allowed)
        )
    return value


def _fits_pattern(pattern: Pattern, final: float, field: str) -> None:
    if isinstance(pattern, NOfM) and not math.isclose(final, pattern.prunable(), abs_tol=1e-4):
        raise CompressionError.field(
            field,
            expected=f"{pattern.prunable():g}, the sparsity that pattern {pattern.text!r} has",
            got=final,
        )


def _tuple(patterns: Iterable[str], field: str) -> tuple[str, ...]:
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        raise CompressionError.field(field, expected="a list of patterns", got=patterns)
    return tuple(patterns)


def _overrides(
    overrides: Mapping[str, Mapping[str, Any] | None] | None,
    field: str,
    final: float,
    pattern: Pattern,
    regrow: str | None,
) -> dict[str, dict[str, Any] | None]:
    checked: dict[str, dict[str, Any] | None] = {}
    for name, settings in (overrides or {}).items():
        where = f"{field}.overrides[{name!r}]"
        if settings is None:
            checked[name] = None
            continue
        if not isinstance(settings, Mapping):
            raise CompressionError.field(where, expected="settings, or None to leave the layer out", got=settings)
        for key in settings:
            _one_of(key, _LAYER_SETTINGS, where)
        parsed: dict[str, Any] = {
            key: _share(settings[key], f"{where}.{key}")
            for key in ("final_sparsity", "initial_sparsity", "layer_floor")
            if key in settings
        }
        own = pattern
        if "pattern" in settings:
            own = parsed["pattern"] = parse_pattern(settings["pattern"], f"{where}.pattern")
            if isinstance(own, Channel) != isinstance(pattern, Channel):
                raise CompressionError.field(
                    f"{where}.pattern",
                    expected="no mix of 'channel' with other patterns",
                    got=settings["pattern"],
                )
            if regrow is not None and type(own) is not Pattern:
                raise CompressionError.field(
                    f"{where}.pattern", expected=f"'unstructured' with regrow={regrow!r}", got=settings["pattern"]
                )
        _fits_pattern(own, parsed.get("final_sparsity", final), f"{where}.final_sparsity")
        if parsed.get("initial_sparsity", 0.0) > parsed.get("final_sparsity", final):
            raise CompressionError.field(
                f"{where}.initial_sparsity",
                expected="at most final_sparsity",
                got=parsed["initial_sparsity"],
            )
        checked[name] = parsed
    return checked
