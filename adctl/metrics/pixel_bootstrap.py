"""Confidence intervals of pixel metrics: images are drawn again whole, since the pixels of one belong together.

For that the counts of each image are kept apart, on a few hundred levels. Which levels, a meter that saw the same
maps tells; what the coarser levels shift is taken back by centring the intervals on the meter's own numbers.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.metrics.accumulator import Group, Label, PixelAccumulator
from adctl.metrics.bootstrap import Interval, Resampling, can_resample, percentile_interval, replicates
from adctl.metrics.pixel_counts import PixelCounts
from adctl.metrics.regions import SIZES, MapPixels, ThresholdedPixels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from adctl.metrics.labels import Floats
    from adctl.metrics.pixel import Meter, PixelMetrics

_LEVELS = 400
_WIDTH = 20 * _LEVELS
"""Numbers held while the metrics of one resample are worked out, about."""


class PixelSamples(PixelAccumulator):
    """Keeps the counts of each image: about 2 KiB for a good one, 11 KiB for a defective one.

    Args:
        meter: Has seen all the maps.
    """

    def __init__(self, meter: Meter) -> None:
        super().__init__(meter.threshold)
        self._levels = meter.tally().telling_levels(_LEVELS)
        self._labels: list[Label] = []
        self._normal: list[NDArray[np.float32]] = []
        self._inside: list[NDArray[np.float32]] = []
        self._judged: list[ThresholdedPixels] = []

    @property
    def labels(self) -> Iterable[Label]:
        """Of the maps so far, each once."""
        return dict.fromkeys(self._labels)

    def tally(self, group: Group | None = None) -> PixelCounts:
        """Counts of each image: the leading axis is that of the images of the group."""
        labels, sizes = group or self.whole
        rows = self.rows(labels)
        inside = self._of_sizes(rows, sizes)
        judged = ThresholdedPixels(
            *(np.stack(column) for column in zip(*(self._judged[row].columns() for row in rows), strict=True))
        )
        normal = np.stack([self._normal[row] for row in rows]).astype(np.float64)
        return PixelCounts.of(self._levels, (normal, inside[:, 0], inside[:, 1]), judged, sizes)

    def rows(self, labels: tuple[Label, ...]) -> NDArray[np.intp]:
        """Which maps have one of these labels."""
        return np.flatnonzero([label in labels for label in self._labels])

    def replicates(self, group: Group, resampling: Resampling) -> dict[str, Floats]:
        """Each metric of a group in every resample [samples]; empty where a label has only one image.

        The draws depend on the labels, their order and the seed alone, so that two detectors that saw the same images
        in the same order are drawn alike: `adctl.metrics.comparison.compare_replicates` takes both.
        """
        strata = [str(self._labels[row]) for row in self.rows(group[0])]
        if not can_resample(strata):
            return {}
        return replicates(strata, resampling, self._measure(self.tally(group)), width=_WIDTH)

    def with_intervals(self, metrics: PixelMetrics, resampling: Resampling) -> PixelMetrics:
        """The metrics of the same maps, each group with its intervals.

        Intervals are left out where a label has only one image.
        """
        defects, sizes = self.defects(), self.sizes()
        return replace(
            self._added(metrics, self.whole, resampling),
            by_defect={kind: self._added(part, defects[kind], resampling) for kind, part in metrics.by_defect.items()},
            by_size={name: self._added(part, sizes[name], resampling) for name, part in metrics.by_size.items()},
        )

    def centred_replicates(self, metrics: PixelMetrics, group: Group, resampling: Resampling) -> dict[str, Floats]:
        """Replicates of a group, moved by what the coarser levels shift, so that they lie about the meter's numbers.

        Args:
            metrics: The meter's, of the same maps and group.
            group: Which maps and regions.
            resampling: How to draw.
        """
        drawn = self.replicates(group, resampling)
        coarse = self._measure(self.tally(group))(np.ones((1, len(self.rows(group[0]))))) if drawn else {}
        exact = {name: value for name in drawn if (value := getattr(metrics, name)) is not None}
        return {name: drawn[name] + (value - float(coarse[name][0])) for name, value in exact.items()}

    def _added(self, metrics: PixelMetrics, group: Group, resampling: Resampling) -> PixelMetrics:
        if metrics.auroc is None:
            return metrics
        found = {}
        for name, values in self.centred_replicates(metrics, group, resampling).items():
            bounds = percentile_interval(values, resampling.level)
            if bounds is not None:
                found[name] = _bounded(bounds)
        return replace(metrics, intervals=found)

    def _measure(self, tally: PixelCounts) -> Callable[[Floats], dict[str, Floats]]:
        """From how often each image counts [b,n] to the metrics [b]."""
        arrays: dict[str, Any] = {column.name: getattr(tally, column.name) for column in fields(tally)}
        levels = arrays.pop("levels")

        def measure(counts: Floats) -> dict[str, Floats]:
            total = PixelCounts(levels, **{name: counts @ array for name, array in arrays.items()})
            return total.ranked() | ({} if self.threshold is None else total.judged())

        return measure

    def _of_sizes(self, rows: NDArray[np.intp], sizes: tuple[int, ...]) -> Floats:
        """Defective pixels and their overlap in regions of these sizes, [n,2,k]; good images have none."""
        found = np.zeros((len(rows), 2, len(self._levels)))
        for place, row in enumerate(rows):
            if self._inside[row].size:
                found[place] = self._inside[row][:, list(sizes)].sum(axis=1)
        return found

    def _take(self, label: Label, parts: MapPixels) -> None:
        number = len(self._levels)
        self._labels.append(label)
        self._judged.append(parts.judged)
        # Sorting bare floats and looking up a few levels is several times faster than looking up every pixel.
        bounds = np.searchsorted(np.sort(parts.normal), self._levels[1:], side="left")
        self._normal.append(np.diff(bounds, prepend=0, append=len(parts.normal)).astype(np.float32))
        self._inside.append(self._counted_inside(parts, number))

    def _counted_inside(self, parts: MapPixels, number: int) -> NDArray[np.float32]:
        if not len(parts.inside):
            return np.empty(0, np.float32)
        cells = parts.size * number + self._level_of(parts.inside)
        columns = (np.bincount(cells, weights=w, minlength=len(SIZES) * number) for w in (None, parts.share))
        return np.stack([column.reshape(len(SIZES), number).astype(np.float32) for column in columns])

    def _level_of(self, values: NDArray[Any]) -> NDArray[np.intp]:
        return np.maximum(np.searchsorted(self._levels, values, side="right") - 1, 0)


def _bounded(bounds: Interval) -> Interval:
    """Kept between 0 and 1, where all these metrics lie."""
    low, high = np.clip([bounds.low, bounds.high], 0.0, 1.0)
    return Interval(float(low), float(high))
