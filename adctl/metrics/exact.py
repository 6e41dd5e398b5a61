"""Pixel metrics without binning, for sets of maps that fit in memory.

Only the values of defective pixels need ranking one by one: between two of them nothing but the number of normal
pixels matters. So normal values are sorted bare, and counted between the defective ones.
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
    """Keeps every pixel's value in its own precision, and computes exact pixel metrics.

    Memory: a float32 map of 256 x 256 takes 256 KiB, and as much again for a moment while it is sorted.

    Args:
        threshold: Above it a pixel is called anomalous; None leaves out what rests on it.
    """

    exact = True

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__(threshold)
        self._by_label: defaultdict[Label, _Values] = defaultdict(_Values)

    @property
    def labels(self) -> Iterable[Label]:
        """Of the maps so far."""
        return self._by_label

    def tally(self, group: Group | None = None) -> PixelCounts:
        """Counts at each distinct value of a defective pixel, and between each two of them."""
        labels, sizes = group or self.whole
        held = [self._by_label[label] for label in labels if label in self._by_label]
        judged = sum((values.judged for values in held), ThresholdedPixels.nothing())
        inside, share = _joined([values.inside(sizes) for values in held])
        sorted_normals = [normal for values in held if len(normal := values.normal())]
        return PixelCounts.of(*_counted(inside, share, sorted_normals), judged, sizes)

    def _take(self, label: Label, parts: MapPixels) -> None:
        self._by_label[label].add(parts)


class _Values:
    """Of the images of one label."""

    def __init__(self) -> None:
        self.judged = ThresholdedPixels.nothing()
        self._defective: list[MapPixels] = []
        self._normal: list[NDArray[Any]] = []
        self._sorted: NDArray[Any] = np.empty(0, np.float32)

    def add(self, parts: MapPixels) -> None:
        self.judged = self.judged + parts.judged
        # A copy: a view would keep the caller's map, or be changed with it.
        self._normal.append(parts.normal.copy())
        if len(parts.inside):
            self._defective.append(parts)

    def normal(self) -> NDArray[Any]:
        """Of normal pixels, ascending."""
        if self._normal:
            self._sorted = np.concatenate([self._sorted, *self._normal])
            self._normal.clear()
            self._sorted.sort()
        return self._sorted

    def inside(self, sizes: tuple[int, ...]) -> tuple[NDArray[Any], Floats]:
        """Values of defective pixels in regions of these sizes, and 1 / area of the region of each."""
        return _joined(
            [(p.inside[chosen], p.share[chosen]) for p in self._defective for chosen in [np.isin(p.size, sizes)]]
        )


def _joined(pairs: Sequence[tuple[NDArray[Any], Floats]]) -> tuple[NDArray[Any], Floats]:
    if not pairs:
        return np.empty(0, np.float32), np.empty(0)
    return np.concatenate([values for values, _ in pairs]), np.concatenate([shares for _, shares in pairs])


def _counted(
    inside: NDArray[Any], share: Floats, sorted_normals: Sequence[NDArray[Any]]
) -> tuple[Floats, tuple[Floats, Floats, Floats]]:
    """Levels [2m+1] and their counts: odd ones are the m distinct defective values, even ones what lies between."""
    values, level_of = np.unique(inside, return_inverse=True)
    size = 2 * len(values) + 1
    levels, normal, defective, overlap = (np.zeros(size) for _ in range(4))
    defective[1::2] = np.bincount(level_of, minlength=len(values))
    overlap[1::2] = np.bincount(level_of, weights=share, minlength=len(values))
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
    """AUPRO of maps in memory.

    Args:
        maps: Anomaly maps, each [H,W].
        masks: True where defective, each [H,W].
        fpr_limit: Where the integration over the false-positive rate ends, in (0, 1].

    Raises:
        DataError: A value is not a finite number, or no pixel is normal, or none defective.
    """
    meter = ExactMeter()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        meter.add(anomaly_map, mask)
    tally = meter.tally()
    if tally.absent():
        raise DataError("AUPRO needs normal and defective pixels.", "Add images with and without defects.")
    return float(aupro(tally.normal, tally.overlap, tally.regions, fpr_limit))
