"""Confidence intervals of pixel metrics. Whole images are resampled, since the pixels of one image belong together.

The counts of each image are kept separately, on a few hundred levels chosen from a meter that saw the same maps. The
small error of these coarse levels is corrected: the replicates are centred on the metrics of the meter.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.metrics.accumulator import Group, Label, PixelAccumulator
from adctl.metrics.bootstrap import Interval, Resampling, can_resample, percentile_interval, replicates
from adctl.metrics.pixel_counts import PixelCounts
from adctl.metrics.regions import SIZES, MapPixels, ThresholdedPixels
from adctl.metrics.table import PIXEL, values_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from adctl.metrics.labels import Floats
    from adctl.metrics.pixel import Meter, PixelMetrics

_LEVELS = 400
_WIDTH = 20 * _LEVELS
"""Approximate count of numbers in memory while the metrics of one resample are computed."""


class PixelSamples(PixelAccumulator):
    """Keeps the counts of each image: about 2 KiB for a good image, 11 KiB for a defective one.

    Args:
        meter: Meter to which all the maps were added before.
    """

    def __init__(self, meter: Meter) -> None:
        super().__init__(meter.threshold)
        self._levels = meter.counts().representative_levels(_LEVELS)
        self._labels: list[Label] = []
        self._normal: list[NDArray[np.float32]] = []
        self._defective: list[NDArray[np.float32]] = []
        self._thresholded: list[ThresholdedPixels] = []

    @property
    def labels(self) -> Iterable[Label]:
        """Labels of the maps added so far, each once."""
        return dict.fromkeys(self._labels)

    def counts(self, group: Group | None = None) -> PixelCounts:
        """Return the counts of each image; the leading axis holds the images of the group."""
        labels, sizes = group or self.whole
        rows = self.rows(labels)
        defective = self._defective_counts(rows, sizes)
        thresholded = ThresholdedPixels(
            *(np.stack(column) for column in zip(*(self._thresholded[row].arrays() for row in rows), strict=True))
        )
        normal = np.stack([self._normal[row] for row in rows]).astype(np.float64)
        return PixelCounts.from_counts(self._levels, (normal, defective[:, 0], defective[:, 1]), thresholded, sizes)

    def rows(self, labels: tuple[Label, ...]) -> NDArray[np.intp]:
        """Return the indices of the maps that have one of these labels."""
        return np.flatnonzero([label in labels for label in self._labels])

    def replicates(self, group: Group, resampling: Resampling) -> dict[str, Floats]:
        """Compute each metric of a group in every resample [samples]; empty if a label has only one image.

        The resamples depend only on the labels, their order and the seed. Two detectors to which the same images were
        added in the same order therefore get the same resamples, as `adctl.metrics.comparison.compare_replicates`
        needs.
        """
        strata = [str(self._labels[row]) for row in self.rows(group[0])]
        if not can_resample(strata):
            return {}
        return replicates(strata, resampling, self._measure(self.counts(group)), width=_WIDTH)

    def with_intervals(self, metrics: PixelMetrics, resampling: Resampling) -> PixelMetrics:
        """Return metrics of the same maps with confidence intervals added to each group.

        Groups in which a label has only one image get no intervals.
        """
        defects, sizes = self.defect_groups(), self.size_groups()
        return replace(
            self._add_intervals(metrics, self.whole, resampling),
            by_defect={
                kind: self._add_intervals(part, defects[kind], resampling) for kind, part in metrics.by_defect.items()
            },
            by_size={
                name: self._add_intervals(part, sizes[name], resampling) for name, part in metrics.by_size.items()
            },
        )

    def centred_replicates(self, metrics: PixelMetrics, group: Group, resampling: Resampling) -> dict[str, Floats]:
        """Return the replicates of a group, shifted to correct the error of the coarse levels.

        Args:
            metrics: Metrics of the meter for the same maps and group.
            group: Labels and region sizes.
            resampling: Bootstrap settings.
        """
        drawn = self.replicates(group, resampling)
        coarse = self._measure(self.counts(group))(np.ones((1, len(self.rows(group[0]))))) if drawn else {}
        exact = {name: value for name in drawn if (value := getattr(metrics, name)) is not None}
        return {name: drawn[name] + (value - float(coarse[name][0])) for name, value in exact.items()}

    def _add_intervals(self, metrics: PixelMetrics, group: Group, resampling: Resampling) -> PixelMetrics:
        if metrics.auroc is None:
            return metrics
        intervals = {}
        for name, values in self.centred_replicates(metrics, group, resampling).items():
            interval = percentile_interval(values, resampling.level)
            if interval is not None:
                intervals[name] = _clipped(interval)
        return replace(metrics, intervals=intervals)

    def _measure(self, counts_of_images: PixelCounts) -> Callable[[Floats], dict[str, Floats]]:
        """Return the function from how often each image was drawn [b,n] to the metrics [b]."""
        arrays: dict[str, Any] = {column.name: getattr(counts_of_images, column.name) for column in fields(PixelCounts)}
        levels = arrays.pop("levels")

        def measure(draws: Floats) -> dict[str, Floats]:
            total = PixelCounts(levels, **{name: draws @ array for name, array in arrays.items()})
            ranked = values_of(PIXEL, total, at_threshold=False)
            return ranked | ({} if self.threshold is None else values_of(PIXEL, total, at_threshold=True))

        return measure

    def _defective_counts(self, rows: NDArray[np.intp], sizes: tuple[int, ...]) -> Floats:
        """Return defective pixels and overlap in regions of these sizes [n,2,k]; zero for good images."""
        counts = np.zeros((len(rows), 2, len(self._levels)))
        for index, row in enumerate(rows):
            if self._defective[row].size:
                counts[index] = self._defective[row][:, list(sizes)].sum(axis=1)
        return counts

    def _store(self, label: Label, pixels: MapPixels) -> None:
        self._labels.append(label)
        self._thresholded.append(pixels.thresholded)
        # Sorting the values and searching a few levels is several times faster than searching every pixel.
        bounds = np.searchsorted(np.sort(pixels.normal), self._levels[1:], side="left")
        self._normal.append(np.diff(bounds, prepend=0, append=len(pixels.normal)).astype(np.float32))
        self._defective.append(self._count_defective(pixels))

    def _count_defective(self, pixels: MapPixels) -> NDArray[np.float32]:
        """Return defective pixels and overlap by size and level [2,S,k]; an empty array for a good image."""
        if not len(pixels.defective):
            return np.empty(0, np.float32)
        number = len(self._levels)
        level = np.maximum(np.searchsorted(self._levels, pixels.defective, side="right") - 1, 0)
        cells = pixels.size_index * number + level
        columns = (np.bincount(cells, weights, len(SIZES) * number) for weights in (None, pixels.inverse_area))
        return np.stack([column.reshape(len(SIZES), number).astype(np.float32) for column in columns])


def _clipped(interval: Interval) -> Interval:
    """Return the interval limited to 0 to 1, the range of all these metrics."""
    low, high = np.clip([interval.low, interval.high], 0.0, 1.0)
    return Interval(float(low), float(high))
