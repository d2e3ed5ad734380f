"""Signals of single batches: saturated activations, drifting ranges, values that are not finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lightning_compress.monitoring import alerts, names
from lightning_compress.monitoring.range_drift import drifts, read_ranges
from lightning_compress.monitoring.saturation import Saturation
from lightning_compress.quantization import Quantization


class BatchSignals:
    """Keeps the newest of these numbers as series, and finds what is worth an alert.

    Attributes:
        saturation: ``compress/saturation/mean`` and ``max``: shares of activations beyond their ranges.
        ranges: ``compress/drift/mean`` and ``max``: how far ranges moved since the last look, in powers of two; and
            ``compress/nonfinite``: in how many batches so far NaN or infinity was kept out of them.
    """

    def __init__(self) -> None:
        self.saturation: dict[str, float] = {}
        self.ranges: dict[str, float] = {}
        self._first_shares: dict[str, float] = {}
        self._widths: dict[str, float] = {}

    @property
    def series(self) -> dict[str, float]:
        """All numbers by their names."""
        return self.saturation | self.ranges

    def saturated(self, found: Mapping[str, Saturation]) -> Iterator[alerts.Alert]:
        """Take what a batch showed; gives alerts where a layer saturates more than it did at first.

        Args:
            found: Quantizer → what it cut off.
        """
        if not found:
            return
        shares = [seen.share for seen in found.values()]
        self.saturation = {
            names.SATURATION_MEAN: sum(shares) / len(shares),
            names.SATURATION_MAX: max(shares),
        }
        yield from alerts.find([], found, before=self._first_shares, sparsity=0.0, target=0.0)
        for name, seen in found.items():
            self._first_shares.setdefault(name, seen.share)

    def moved(self, quantization: Quantization, nonfinite_steps: int) -> Iterator[alerts.Alert]:
        """Look at the ranges; gives alerts where values were not finite.

        Args:
            quantization: The quantizers.
            nonfinite_steps: Steps so far in which the gradient of a learned range was not finite.
        """
        found = read_ranges(quantization)
        moved = drifts(self._widths, found.widths) or [0.0]
        self._widths = dict(found.widths)
        self.ranges = {
            names.DRIFT_MEAN: sum(moved) / len(moved),
            names.DRIFT_MAX: max(moved),
            names.NONFINITE: float(max([nonfinite_steps, *found.nonfinite.values()])),
        }
        counts = (
            found.nonfinite if any(found.nonfinite.values()) else {"The gradient of a learned range": nonfinite_steps}
        )
        yield from alerts.find([], {}, before={}, sparsity=0.0, target=0.0, nonfinite=counts)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        return {
            "saturation": dict(self.saturation),
            "saturation_before": dict(self._first_shares),
            "widths": dict(self._widths),
            "ranges": dict(self.ranges),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.saturation, self.ranges = dict(state_dict["saturation"]), dict(state_dict["ranges"])
        self._first_shares, self._widths = dict(state_dict["saturation_before"]), dict(state_dict["widths"])
