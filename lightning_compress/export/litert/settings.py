"""How a LiteRT file takes and gives tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from lightning_compress.errors import CompressionError, closest

Layout = Literal["channels_first", "channels_last"]
Values = Literal["float32", "int8"]


@dataclass(frozen=True)
class LiteRTSettings:
    """How a LiteRT file takes and gives tensors.

    Attributes:
        layout: Whether inputs and outputs of four dimensions are ``[N, C, H, W]``, as in PyTorch, or ``[N, H, W, C]``,
            as cameras and most LiteRT code have them.
        values: float32, or int8 on the grid of the trained quantizer, for devices that compute no floats.
    """

    layout: Layout = "channels_first"
    values: Values = "float32"

    @classmethod
    def of(cls, given: Mapping[str, Any] | None, field: str) -> LiteRTSettings:
        """Read settings as a configuration has them.

        Args:
            given: Name → value; others have their defaults.
            field: Name of the owner's setting, for messages.

        Raises:
            CompressionError: A name or a value is unknown.

        Example:
            >>> LiteRTSettings.of({"values": "int8"}, "export.litert").layout
            'channels_first'
        """
        names = [each.name for each in fields(cls)]
        for name, value in (given or {}).items():
            if name not in names:
                raise CompressionError.field(
                    field, expected=f"settings among {', '.join(names)}", got=name, fix=closest(name, names)
                )
            allowed = get_args(Layout if name == "layout" else Values)
            if value not in allowed:
                raise CompressionError.field(f"{field}.{name}", expected=f"one of {', '.join(allowed)}", got=value)
        return cls(**(given or {}))
