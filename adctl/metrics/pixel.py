"""Pixel metrics: over all pixels, by defect type and by region size.

`exact.py` and `streaming.py` hold the two kinds of meter.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.metrics.accumulator import Group, PixelAccumulator
from adctl.metrics.table import PIXEL, error_bounds, names_of, values_of

if TYPE_CHECKING:
    from adctl.metrics.bootstrap import Interval
    from adctl.metrics.curves import Curve

_AT_THRESHOLD = names_of(PIXEL, at_threshold=True)
_ALL = (*names_of(PIXEL, at_threshold=False), "f1_max_threshold", *_AT_THRESHOLD)


@dataclass(frozen=True)
class PixelMetrics:
    """Metrics of map values over all pixels; a pixel is predicted anomalous if its value is above the threshold.

    Regions are the 8-connected components of the masks.

    Attributes:
        images: Number of maps.
        regions: Number of regions.
        auroc: Area under the pixel ROC curve.
        average_precision: Average precision over pixels.
        aupro: Per-region overlap integrated over false-positive rates up to 0.30, divided by 0.30
            (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 129, 2021, doi:10.1007/s11263-020-01400-4).
        aupro_05: The same up to a false-positive rate of 0.05.
        f1_max: Highest pixel F1 (equal to Dice) over all thresholds.
        f1_max_threshold: Threshold that reaches `f1_max`, to the nearest bin if values are binned.
        threshold: Threshold of the metrics below, which are exact even if values are binned.
        iou: Intersection over union of predicted and true anomalous pixels.
        dice: 2 x intersection / (predicted + true anomalous pixels).
        precision: Share of the predicted anomalous pixels that are defective.
        recall: Share of the defective pixels that are predicted anomalous.
        region_overlap: Mean over regions of the share of their pixels that is predicted anomalous.
        region_iou: Mean over regions of their IoU with all predicted components that touch them, without the pixels of
            other regions in the union (sIoU of Chan et al., "SegmentMeIfYouCan", NeurIPS 2021, arXiv:2104.14812).
        by_defect: The same metrics for each defect type: its images and all good images.
        by_size: The same metrics for each region size (`adctl.metrics.regions.SIZES`): its regions and all normal
            pixels.
        errors: Largest possible error of each metric that binning makes inexact; empty if all are exact.
        intervals: Confidence intervals by metric; empty unless requested.
        missing: For each metric that does not exist, the reason.
    """

    images: int
    regions: int = 0
    auroc: float | None = None
    average_precision: float | None = None
    aupro: float | None = None
    aupro_05: float | None = None
    f1_max: float | None = None
    f1_max_threshold: float | None = None
    threshold: float | None = None
    iou: float | None = None
    dice: float | None = None
    precision: float | None = None
    recall: float | None = None
    region_overlap: float | None = None
    region_iou: float | None = None
    by_defect: dict[str, PixelMetrics] = field(default_factory=dict)
    by_size: dict[str, PixelMetrics] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-safe dictionary; a threshold that is not finite becomes None."""
        value = asdict(self)
        for part in (value, *value["by_defect"].values(), *value["by_size"].values()):
            threshold = part["threshold"]
            part["threshold"] = threshold if threshold is not None and np.isfinite(threshold) else None
        return value


class Meter(PixelAccumulator):
    """An accumulator that computes pixel metrics from its counts."""

    exact: bool
    """Whether levels are distinct values rather than bins."""

    def result(self) -> PixelMetrics:
        """Compute all metrics of the maps added so far."""
        by_size = {name: self._metrics(group) for name, group in self.size_groups().items()}
        return self._metrics(
            self.whole,
            by_defect={kind: self._metrics(group) for kind, group in self.defect_groups().items()},
            by_size={name: metrics for name, metrics in by_size.items() if metrics.regions},
        )

    def curves(self) -> dict[str, Curve]:
        """Return the curves `roc`, `pr` and `pro`; see `PixelCounts.curves`."""
        return self.counts().curves()

    def _metrics(self, group: Group, **parts: Any) -> PixelMetrics:
        counts = self.counts(group)
        known: dict[str, Any] = {"images": int(counts.images), "regions": int(counts.regions), **parts}
        known["threshold"] = self.threshold
        absent = counts.absent_pixels()
        if absent:
            return PixelMetrics(**known, missing=dict.fromkeys(_ALL, absent))
        known |= {name: float(value) for name, value in values_of(PIXEL, counts, at_threshold=False).items()}
        known["f1_max_threshold"] = counts.f1_max_threshold()
        if self.threshold is None:
            missing = dict.fromkeys(_AT_THRESHOLD, "there is no pixel threshold")
        else:
            known |= {
                name: float(value)
                for name, value in values_of(PIXEL, counts, at_threshold=True).items()
                if np.isfinite(value)
            }
            missing = {
                metric.name: metric.undefined for metric in PIXEL if metric.undefined and metric.name not in known
            }
        return PixelMetrics(**known, errors={} if self.exact else error_bounds(counts), missing=missing)
