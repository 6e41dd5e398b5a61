"""Exact pixel metrics, for sets of maps that fit in memory.

Levels are the distinct values of defective pixels. Between two of them only the number of normal pixels matters, so
normal values are sorted once and counted between the defective ones.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.errors import DataError
from adctl.metrics.pixel import Meter
from adctl.metrics.pixel_counts import PixelCounts
from adctl.metrics.ranking import aupro
from adctl.metrics.regions import MapPixels, ThresholdedPixels

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from adctl.metrics.accumulator import Group, Label
    from adctl.metrics.labels import Floats


class ExactMeter(Meter):
    """Keeps the value of every pixel in its own precision and computes exact pixel metrics.

    Memory: 256 KiB for a float32 map of 256 x 256 pixels, and twice that while the values are sorted.

    Args:
        threshold: Pixels above it are anomalous; None leaves out the metrics that need it.
    """

    exact = True

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__(threshold)
        self._by_label: defaultdict[Label, _Values] = defaultdict(_Values)

    @property
    def labels(self) -> Iterable[Label]:
        """Labels of the maps added so far."""
        return self._by_label

    def counts(self, group: Group | None = None) -> PixelCounts:
        """Return the counts at each distinct value of a defective pixel and between each two of them."""
        labels, sizes = group or self.whole
        kept = [self._by_label[label] for label in labels if label in self._by_label]
        thresholded = sum((values.thresholded for values in kept), ThresholdedPixels.zero())
        defective, inverse_area = _concatenate([values.defective(sizes) for values in kept])
        sorted_normals = [normal for values in kept if len(normal := values.sorted_normal())]
        return PixelCounts.from_counts(*_count_levels(defective, inverse_area, sorted_normals), thresholded, sizes)

    def _store(self, label: Label, pixels: MapPixels) -> None:
        self._by_label[label].add(pixels)


class _Values:
    """The pixel values of the images with one label."""

    def __init__(self) -> None:
        self.thresholded = ThresholdedPixels.zero()
        self._with_defect: list[MapPixels] = []
        self._normal: list[NDArray[Any]] = []
        self._sorted: NDArray[Any] = np.empty(0, np.float32)

    def add(self, pixels: MapPixels) -> None:
        self.thresholded = self.thresholded + pixels.thresholded
        # A copy: a view would keep the caller's map in memory, or change with it.
        self._normal.append(pixels.normal.copy())
        if len(pixels.defective):
            self._with_defect.append(pixels)

    def sorted_normal(self) -> NDArray[Any]:
        """Return the values of all normal pixels, ascending."""
        if self._normal:
            self._sorted = np.concatenate([self._sorted, *self._normal])
            self._normal.clear()
            self._sorted.sort()
        return self._sorted

    def defective(self, sizes: tuple[int, ...]) -> tuple[NDArray[Any], Floats]:
        """Return the values of defective pixels in regions of these sizes, and 1 / area of the region of each."""
        chosen = [(pixels, np.isin(pixels.size_index, sizes)) for pixels in self._with_defect]
        return _concatenate([(pixels.defective[rows], pixels.inverse_area[rows]) for pixels, rows in chosen])


def _concatenate(pairs: Sequence[tuple[NDArray[Any], Floats]]) -> tuple[NDArray[Any], Floats]:
    if not pairs:
        return np.empty(0, np.float32), np.empty(0)
    return np.concatenate([values for values, _ in pairs]), np.concatenate([areas for _, areas in pairs])


def _count_levels(
    defective_values: NDArray[Any], inverse_area: Floats, sorted_normals: Sequence[NDArray[Any]]
) -> tuple[Floats, tuple[Floats, Floats, Floats]]:
    """Return levels [2m+1] and their counts; odd levels are the m distinct defective values, even ones lie between."""
    values, level_of = np.unique(defective_values, return_inverse=True)
    size = 2 * len(values) + 1
    levels, normal, defective, overlap = (np.zeros(size) for _ in range(4))
    defective[1::2] = np.bincount(level_of, minlength=len(values))
    overlap[1::2] = np.bincount(level_of, weights=inverse_area, minlength=len(values))
    for normals in sorted_normals:
        bounds = np.empty(size + 1, np.intp)
        bounds[0], bounds[-1] = 0, len(normals)
        bounds[1:-1:2] = np.searchsorted(normals, values, side="left")
        bounds[2:-1:2] = np.searchsorted(normals, values, side="right")
        normal += np.diff(bounds)
    levels[1::2] = values
    levels[2::2] = np.nextafter(levels[1::2], np.inf)
    levels[0] = min([*(float(normals[0]) for normals in sorted_normals), *values[:1].tolist()], default=0.0)
    return levels, (normal, defective, overlap)


def aupro_exact(maps: Sequence[NDArray[Any]], masks: Sequence[NDArray[Any]], fpr_limit: float = 0.3) -> float:
    """Compute the AUPRO of maps in memory.

    Args:
        maps: Anomaly maps, each [H,W].
        masks: Masks, each [H,W], true where defective.
        fpr_limit: Upper end of the false-positive rate, in (0, 1].

    Raises:
        DataError: A value is not a finite number, or there are no normal or no defective pixels.
    """
    meter = ExactMeter()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        meter.add(anomaly_map, mask)
    counts = meter.counts()
    if counts.absent_pixels():
        raise DataError("AUPRO needs normal and defective pixels.", "Add images with and without defects.")
    return float(aupro(counts.normal, counts.overlap, counts.regions, fpr_limit))
