"""Pixel metrics of any number of maps in constant memory: histograms, with bounds of the error.

Metrics at the threshold are counted pixel by pixel and exact. Ranking metrics know values only to the nearest bin.
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

# Upsampling a float32 map can leave its range by a few units in the last place (6e-8 of the value each).
_TOLERANCE = 1e-6


class HistogramMeter(Meter):
    """Computes pixel metrics from histograms; memory does not grow with the number of maps.

    Args:
        low: Lower bound of all map values.
        high: Upper bound of all map values.
        threshold: Pixels above it are anomalous; None leaves out the metrics that need it.
        bins: Number of histogram bins between the bounds.

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
        """Labels of the maps added so far."""
        return self._by_label

    def counts(self, group: Group | None = None) -> PixelCounts:
        """Return the counts of each bin."""
        labels, sizes = group or self.whole
        total = _Histograms(self.bins)
        for label in labels:
            if label in self._by_label:
                total.merge(self._by_label[label])
        defective, overlap = (column[list(sizes)].sum(axis=0) for column in (total.defective, total.overlap))
        levels = np.linspace(self.low, self.high, self.bins + 1)[:-1]
        return PixelCounts.from_counts(levels, (total.normal, defective, overlap), total.thresholded, sizes)

    def _store(self, label: Label, pixels: MapPixels) -> None:
        normal, defective = self._bin(pixels.normal), self._bin(pixels.defective)
        self._by_label[label].add(normal, defective, pixels)

    def _bin(self, values: NDArray[Any]) -> NDArray[np.intp]:
        if values.size:
            self._check_range(float(values.min()), float(values.max()))
        if self.low == self.high:
            return np.zeros(values.shape, np.intp)
        # In float64 for every map type: in float32 a narrow range far from zero would collapse.
        scaled = np.subtract(values, self.low, dtype=np.float64)
        scaled /= self.high - self.low
        scaled *= self.bins
        bins: NDArray[np.intp] = scaled.astype(np.intp)
        return np.clip(bins, 0, self.bins - 1, out=bins)

    def _check_range(self, least: float, most: float) -> None:
        tolerance = _TOLERANCE * max(abs(self.low), abs(self.high))
        if least < self.low - tolerance or most > self.high + tolerance:
            raise ValueError(f"map values must lie between {self.low} and {self.high}. Got {least} to {most} instead.")


class _Histograms:
    """Histograms of the images with one label: normal pixels [bins], defective pixels and overlap by size [S,bins]."""

    def __init__(self, bins: int) -> None:
        self.normal = np.zeros(bins)
        self.defective, self.overlap = np.zeros((len(SIZES), bins)), np.zeros((len(SIZES), bins))
        self.thresholded = ThresholdedPixels.zero()

    def add(self, normal: NDArray[np.intp], defective: NDArray[np.intp], pixels: MapPixels) -> None:
        self.thresholded = self.thresholded + pixels.thresholded
        self.normal += np.bincount(normal, minlength=len(self.normal))
        if len(defective):
            shape = self.defective.shape
            cells = pixels.size_index * shape[1] + defective
            self.defective += np.bincount(cells, minlength=self.defective.size).reshape(shape)
            self.overlap += np.bincount(cells, pixels.inverse_area, self.overlap.size).reshape(shape)

    def merge(self, other: _Histograms) -> None:
        self.thresholded = self.thresholded + other.thresholded
        self.normal += other.normal
        self.defective += other.defective
        self.overlap += other.overlap
