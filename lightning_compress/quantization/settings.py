"""Settings of quantization, checked when they are made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from lightning_compress.errors import CompressionError, closest

ActivationScheme = Literal["affine", "symmetric"]
RangeMethod = Literal["minmax", "percentile", "mse", "learned"]
Processor = Literal["any", "vnni"]
Backend = Literal["onnxruntime", "openvino", "inductor", "tensorrt", "executorch", "litert"]

_OVERRIDABLE = ("weight_bits", "activation_bits", "weight_granularity")


@dataclass(frozen=True)
class WeightSpec:
    """How a weight is quantized: symmetric integers, so that 0.0 is exact and batch norm folds into the scale.

    Attributes:
        bits: Bit width, 2 to 8.
        granularity: One scale per output ``"channel"``, per ``"tensor"``, or per ``"group:<n>"`` of inputs.
        range: How the range is found.
        narrow: Whether integers keep 7 bits, however many they are stored in.
    """

    bits: int
    granularity: str = "channel"
    range: RangeMethod = "minmax"
    narrow: bool = False

    @property
    def qmax(self) -> int:
        """Largest integer; the smallest is its negative, which keeps the grid symmetric."""
        return 2 ** (min(self.bits, 7 if self.narrow else 8) - 1) - 1

    @property
    def group_size(self) -> int | None:
        """Inputs that share a scale, or ``None`` without groups."""
        return int(self.granularity.split(":")[1]) if self.granularity.startswith("group:") else None


@dataclass(frozen=True)
class ActivationSpec:
    """How an activation is quantized: one scale and zero point per tensor.

    Attributes:
        bits: Bit width, 2 to 8.
        scheme: ``"affine"`` unsigned integers with a zero point, ``"symmetric"`` signed integers without.
        range: How the range is found.
    """

    bits: int
    scheme: ActivationScheme = "affine"
    range: RangeMethod = "minmax"

    @property
    def qmin(self) -> int:
        """Smallest integer."""
        return 0 if self.scheme == "affine" else -(2 ** (self.bits - 1)) + 1

    @property
    def qmax(self) -> int:
        """Largest integer."""
        return 2**self.bits - 1 if self.scheme == "affine" else 2 ** (self.bits - 1) - 1


@dataclass(frozen=True)
class QuantizationSettings:
    """All settings of ``prepare`` and ``QuantizationAwareTraining``.

    Attributes:
        weight_bits: Bits of weights, 2 to 8, or ``None`` for float.
        activation_bits: Bits of activations, 2 to 8, or ``None`` for float.
        weight_granularity: ``"channel"``, ``"tensor"`` or ``"group:<n>"``.
        activation_scheme: ``"affine"`` (unsigned, zero point) or ``"symmetric"`` (signed).
        range: ``"minmax"`` (moving average), ``"percentile"``, ``"mse"`` or ``"learned"`` (LSQ).
        backend: Runtime that decides where activations are quantized; ``None`` quantizes layer inputs alone.
        targets: Patterns of layers to quantize; ``None`` means all that can be.
        ignore: Patterns of layers to leave in float.
        overrides: Pattern → ``{"weight_bits", "activation_bits", "weight_granularity"}`` or ``None`` (float).
        momentum: Weight of a new batch in the moving average of ranges.
        observe_every: Training forwards between two range observations; between two searches of ``"mse"`` ten times
            as many. A step under ``torch.compile`` observes every batch.
        first_last_bits: Least bits of the first and last layers' weights and inputs, which hurt most when they are
            coarse (as in PACT, LSQ and APoT). ``None`` treats them like all others, as an override does that names
            their bits, or a model in which every layer is a first or a last one.
        processor: Processors that the file is for: ``"any"``, or ``"vnni"``, whose 8-bit kernels do not saturate (x86
            with VNNI, Arm).
        reduce_range: Keep the integers of weights within 7 bits where activations are integers, too: then kernels that
            add pairs of products in 16 bits cannot saturate. ``None``: for ``backend="onnxruntime"`` and
            ``processor="any"``, since such files are right and fast in every session. With ``False`` and
            ``processor="any"`` the ONNX file holds 8-bit weights as uint8, which are right everywhere and slower.
        field: Who asks, for messages.

    Raises:
        CompressionError: A value is not allowed.

    Example:
        >>> QuantizationSettings(weight_bits=4).weight_spec({}).qmax
        7
    """

    weight_bits: int | None = 8
    activation_bits: int | None = 8
    weight_granularity: str = "channel"
    activation_scheme: ActivationScheme = "affine"
    range: RangeMethod = "minmax"
    backend: Backend | None = "onnxruntime"
    targets: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    overrides: Mapping[str, Mapping[str, Any] | None] | None = None
    momentum: float = 0.1
    observe_every: int = 1
    first_last_bits: int | None = 8
    processor: Processor = "any"
    reduce_range: bool | None = None
    field: str = "prepare"

    def __post_init__(self) -> None:
        """Refuse what cannot be quantized that way."""
        check_bits(self.weight_bits, f"{self.field}.weight_bits")
        check_bits(self.activation_bits, f"{self.field}.activation_bits")
        check_bits(self.first_last_bits, f"{self.field}.first_last_bits")
        check_granularity(self.weight_granularity, f"{self.field}.weight_granularity")
        if not isinstance(self.reduce_range, bool | None):
            raise CompressionError.field(
                f"{self.field}.reduce_range", expected="true, false or null", got=self.reduce_range
            )
        check_choice(self.processor, get_args(Processor), f"{self.field}.processor")
        check_choice(self.activation_scheme, get_args(ActivationScheme), f"{self.field}.activation_scheme")
        check_choice(self.range, get_args(RangeMethod), f"{self.field}.range")
        if self.backend is not None:
            check_choice(self.backend, get_args(Backend), f"{self.field}.backend")
        if self.weight_bits is None and self.activation_bits is None and not self.overrides:
            raise CompressionError.field(
                f"{self.field}.weight_bits",
                expected="weight_bits or activation_bits from 2 to 8",
                got=None,
                fix="With both None nothing is quantized: leave the callback out instead.",
            )
        momentum: object = self.momentum
        if isinstance(momentum, bool) or not isinstance(momentum, int | float) or not 0 < momentum <= 1:
            raise CompressionError.field(f"{self.field}.momentum", expected="a number in (0, 1]", got=self.momentum)
        every: object = self.observe_every
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise CompressionError.field(
                f"{self.field}.observe_every", expected="a whole number from 1", got=self.observe_every
            )
        if self.range == "learned" and self.weight_granularity.startswith("group:"):
            raise CompressionError.field(
                f"{self.field}.weight_granularity",
                expected="'channel' or 'tensor' with range='learned'",
                got=self.weight_granularity,
                fix="Scales of groups are not learned: choose another range.",
            )
        for pattern, settings in (self.overrides or {}).items():
            self._check_override(pattern, settings)

    def _check_override(self, pattern: str, settings: Mapping[str, Any] | None) -> None:
        where = f"{self.field}.overrides[{pattern!r}]"
        if settings is None:
            return
        if not isinstance(settings, Mapping):
            raise CompressionError.field(where, expected="a mapping of settings, or null for float", got=settings)
        for key, value in settings.items():
            if key not in _OVERRIDABLE:
                raise CompressionError.field(
                    where,
                    expected=f"settings among {', '.join(_OVERRIDABLE)}",
                    got=key,
                    fix=closest(key, _OVERRIDABLE),
                )
            check = check_granularity if key == "weight_granularity" else check_bits
            check(value, f"{where}.{key}")

    def weight_spec(self, overrides: Mapping[str, Any], *, end: bool = False) -> WeightSpec | None:
        """The spec of one layer's weight, or ``None`` where it stays float.

        Args:
            overrides: The settings of the layer that differ from these.
            end: Whether it is a first or last layer.
        """
        bits = self._bits("weight_bits", overrides, end)
        if bits is None:
            return None
        granularity = overrides.get("weight_granularity", self.weight_granularity)
        integers = self.input_bits(overrides, end=end) is not None
        return WeightSpec(bits, granularity, self.range, self.narrows and integers)

    @property
    def narrows(self) -> bool:
        """Whether weights keep 7 bits in integer layers."""
        if self.reduce_range is not None:
            return self.reduce_range
        return self.backend == "onnxruntime" and self.processor == "any"

    @property
    def stores_unsigned(self) -> bool:
        """Whether an ONNX file holds weights that could saturate as uint8; TensorRT and OpenVINO want int8."""
        return self.processor == "any" and self.backend not in ("tensorrt", "openvino")

    def input_bits(self, overrides: Mapping[str, Any], *, end: bool = False) -> int | None:
        """Bits of one layer's input, or ``None`` where it stays float.

        Args:
            overrides: The settings of the layer that differ from these.
            end: Whether it is a first or last layer.
        """
        return self._bits("activation_bits", overrides, end)

    def _bits(self, which: str, overrides: Mapping[str, Any], end: bool) -> int | None:
        bits: int | None = overrides.get(which, getattr(self, which))
        if bits is None or which in overrides or not end or self.first_last_bits is None:
            return bits
        return max(bits, self.first_last_bits)

    def activation_spec(self, bits: int) -> ActivationSpec:
        """The spec of an activation.

        Args:
            bits: 2 to 8.
        """
        return ActivationSpec(bits, self.activation_scheme, self.range)

    def as_dict(self) -> dict[str, Any]:
        """The settings as primitives, for checkpoints and reports."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "field"}
        found["targets"] = None if self.targets is None else list(self.targets)
        found["ignore"] = list(self.ignore)
        found["overrides"] = {k: None if v is None else dict(v) for k, v in (self.overrides or {}).items()}
        return found

    def named(self, field: str) -> QuantizationSettings:
        """The same settings of another owner.

        Args:
            field: The owner's name, for messages.
        """
        return replace(self, field=field)


def check_bits(bits: object, field: str) -> None:
    """Refuse a bit width that is not ``None`` or an integer from 2 to 8."""
    if bits is None:
        return
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise CompressionError.field(
            field,
            expected="an integer from 2 to 8, or None (null) for float",
            got=bits,
            fix="One-bit and 16-bit integers are not supported.",
        )


def check_granularity(granularity: object, field: str) -> None:
    """Refuse a granularity that is not ``channel``, ``tensor`` or ``group:<n>``."""
    if not isinstance(granularity, str) or not re.fullmatch(r"channel|tensor|group:[1-9]\d*", granularity):
        raise CompressionError.field(
            field, expected="'channel', 'tensor' or 'group:<n>' such as 'group:32'", got=granularity
        )


def check_choice(value: object, allowed: Sequence[str], field: str) -> None:
    """Refuse a value outside a set of names."""
    if value not in allowed:
        raise CompressionError.field(
            field, expected=f"one of {', '.join(allowed)}", got=value, fix=closest(str(value), allowed)
        )
