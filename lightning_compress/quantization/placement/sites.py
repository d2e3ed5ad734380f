"""A placement: the sites of all activation quantizers, and the batch norms that it folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_compress.foundation.boundary import Boundary
from lightning_compress.foundation.nested import Key


@dataclass(frozen=True)
class Site:
    """One activation quantizer.

    Attributes:
        name: Its name, made from its first boundary.
        boundaries: The boundaries at which it acts; more than one where no single one is before every user.
        bits: Bit width where the model's bits of activations do not decide it: the most that a layer with bits of
            its own asks for; ``None`` if there is none.
        common: Whether the model's bits count, too.
    """

    name: str
    boundaries: tuple[Boundary, ...]
    bits: int | None = None
    common: bool = True

    @property
    def places(self) -> dict[Boundary, list[tuple[Key, ...]]]:
        """Boundary without its path → the paths at which the tensor passes there."""
        found: dict[Boundary, list[tuple[Key, ...]]] = {}
        for boundary in self.boundaries:
            found.setdefault(replace(boundary, path=()), []).append(boundary.path)
        return found

    def width(self, common: int | None) -> int:
        """Bits of the quantizer, given the model's bits of activations."""
        return max(self.bits or 0, (common or 0) if self.common else 0)


@dataclass(frozen=True)
class Placement:
    """All activation quantizers of a model, and what they rest on.

    Attributes:
        sites: The quantizers, in the order in which their tensors are made.
        layer_input: Weight's full name → name of the site that quantizes its layer's input.
        folds: Name of a layer → name of the batch norm that alone uses its output.
        unreached: What stays float although the backend could run it in integers, a line each with the reason.
    """

    sites: tuple[Site, ...] = ()
    layer_input: Mapping[str, str] = field(default_factory=dict)
    folds: Mapping[str, str] = field(default_factory=dict)
    unreached: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As primitives, for checkpoints."""
        return {
            "sites": [
                {
                    "name": site.name,
                    "bits": site.bits,
                    "common": site.common,
                    "boundaries": [[b.module, b.side, list(b.path), b.function, b.call] for b in site.boundaries],
                }
                for site in self.sites
            ],
            "layer_input": dict(self.layer_input),
            "folds": dict(self.folds),
            "unreached": list(self.unreached),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Placement:
        """The inverse of ``as_dict``."""
        return cls(
            sites=tuple(
                Site(
                    site["name"],
                    tuple(Boundary(module, side, tuple(path), *at) for module, side, path, *at in site["boundaries"]),
                    site["bits"],
                    site["common"],
                )
                for site in state["sites"]
            ),
            layer_input=dict(state["layer_input"]),
            folds=dict(state["folds"]),
            unreached=tuple(state["unreached"]),
        )


def site_name(boundary: Boundary) -> str:
    """Name of the quantizer whose first boundary this is.

    Example:
        >>> site_name(Boundary("block.conv", "input", (0,))), site_name(Boundary("block", "output", (), "relu", 1))
        ('block.conv:input[0]', 'block:relu[1]:output')
    """
    path = "".join(f"[{key}]" for key in boundary.path)
    function = f"{boundary.function}[{boundary.call}]:" if boundary.function else ""
    side = f"{boundary.side}{path if boundary.side == 'input' or path else ''}"
    return f"{boundary.module or 'model'}:{function}{side}"
