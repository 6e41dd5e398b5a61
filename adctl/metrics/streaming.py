"""Pixel metrics of any number of maps in bounded memory: histograms, and how far off they can be.

What rests on the threshold is counted pixel by pixel and stays exact; ranking metrics know values to the nearest bin.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.metrics.pixel import Meter
from adctl.metrics.pixel_counts import PixelCounts
from adctl.metrics.regions import SIZES, MapPixels, ThresholdedPixels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from adctl.metrics.accumulator import Group, Label

# Enlarging a float32 map may leave its range by a few units in the last place (6e-8 of the value each).
_SLACK = 1e-6


class HistogramMeter(Meter):
    """Gathers maps one at a time and computes pixel metrics from histograms; memory does not grow with maps.

    Args:
        low: A value no map goes below.
        high: A value no map goes above.
        threshold: Above it a pixel is called anomalous; None leaves out what rests on it.
        bins: Steps between the two.

    Raises:
        ValueError: The bounds are not finite or not in order.
    """

    exact = False

    def __init__(self, low: float, high: float, threshold: float | None = None, *, bins: int = 65_536) -> None:
        if not (np.isfinite(high - low) and low <= high):
            raise ValueError(f"low and high must be finite and in order. Got {low} and {high} instead.")
        super().__init__(threshold)
        self.low, self.high, self.bins = low, high, bins
        self._by_label: defaultdict[Label, _Histograms] = defaultdict(lambda: _Histograms(bins))

    @property
    def labels(self) -> Iterable[Label]:
        """Of the maps so far."""
        return self._by_label

    def tally(self, group: Group | None = None) -> PixelCounts:
        """Counts of each bin."""
        labels, sizes = group or self.whole
        total = _Histograms(self.bins)
        for label in labels:
            if label in self._by_label:
                total.include(self._by_label[label])
        defective, overlap = (column[list(sizes)].sum(axis=0) for column in (total.defective, total.overlap))
        levels = np.linspace(self.low, self.high, self.bins + 1)[:-1]
        return PixelCounts.of(levels, (total.normal, defective, overlap), total.judged, sizes)

    def _take(self, label: Label, parts: MapPixels) -> None:
        normal, inside = self._binned(parts.normal), self._binned(parts.inside)
        self._by_label[label].add(normal, inside, parts)

    def _binned(self, values: NDArray[Any]) -> NDArray[np.intp]:
        if values.size:
            self._check(float(values.min()), float(values.max()))
        if self.low == self.high:
            return np.zeros(values.shape, np.intp)
        # In float64 whatever the map's type: a narrow range far from zero would collapse in float32.
        scaled = np.subtract(values, self.low, dtype=np.float64)
        scaled /= self.high - self.low
        scaled *= self.bins
        bins: NDArray[np.intp] = scaled.astype(np.intp)
        return np.clip(bins, 0, self.bins - 1, out=bins)

    def _check(self, least: float, most: float) -> None:
        slack = _SLACK * max(abs(self.low), abs(self.high))
        if least < self.low - slack or most > self.high + slack:
            raise ValueError(f"map values must lie between {self.low} and {self.high}. Got {least} to {most} instead.")


class _Histograms:
    """Of the images of one label: normal pixels [bins], and by size of region [S,bins] defective ones and overlap."""

    def __init__(self, bins: int) -> None:
        self.normal = np.zeros(bins)
        self.defective, self.overlap = np.zeros((len(SIZES), bins)), np.zeros((len(SIZES), bins))
        self.judged = ThresholdedPixels.nothing()

    def add(self, normal: NDArray[np.intp], inside: NDArray[np.intp], parts: MapPixels) -> None:
        self.judged = self.judged + parts.judged
        self.normal += np.bincount(normal, minlength=len(self.normal))
        if len(inside):
            shape = self.defective.shape
            cells = parts.size * shape[1] + inside
            self.defective += np.bincount(cells, minlength=self.defective.size).reshape(shape)
            self.overlap += np.bincount(cells, weights=parts.share, minlength=self.overlap.size).reshape(shape)

    def include(self, other: _Histograms) -> None:
        self.judged = self.judged + other.judged
        self.normal += other.normal
        self.defective += other.defective
        self.overlap += other.overlap
