"""Metrics of map values over pixels: as a whole, by defect type and by size of defect.

`exact.py` and `streaming.py` hold the two meters that gather maps; what follows from their counts is here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.metrics.accumulator import Group, PixelAccumulator

if TYPE_CHECKING:
    from adctl.metrics.bootstrap import Interval
    from adctl.metrics.curves import Curve

_RANKING = ("auroc", "average_precision", "aupro", "aupro_05", "f1_max", "f1_max_threshold")
_JUDGED = ("iou", "dice", "precision", "recall", "region_overlap", "region_iou")


@dataclass(frozen=True)
class PixelMetrics:
    """Metrics of map values over all pixels; a pixel is called anomalous when its value is above the threshold.

    Regions are the 8-connected parts of the masks.

    Attributes:
        images: Number of maps.
        regions: Number of regions.
        auroc: Area under the pixel ROC curve.
        average_precision: Of pixels.
        aupro: Per-region overlap integrated over false-positive rates up to 0.30, divided by 0.30
            (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 129, 2021, doi:10.1007/s11263-020-01400-4).
        aupro_05: The same up to 0.05.
        f1_max: The highest pixel F1, which is the highest Dice, over all thresholds.
        f1_max_threshold: Above it f1_max is reached; to the nearest bin where values are binned.
        threshold: The threshold the following rest on; they are exact, binned or not.
        iou: Intersection over union of the pixels called anomalous and those that are.
        dice: 2 intersection / (both sums).
        precision: Share of the called pixels that are defect.
        recall: Share of the defect's pixels that are called.
        region_overlap: Mean over regions of the share of their pixels that is called.
        region_iou: Mean over regions of their IoU with all called regions that touch them, pixels of other defects
            left out of the union (sIoU of Chan et al., "SegmentMeIfYouCan", NeurIPS 2021, arXiv:2104.14812).
        by_defect: The same for each defect type, against the pixels of good images and of its own.
        by_size: The same for the regions of each size (`adctl.metrics.regions.SIZES`), against all normal pixels.
        errors: For each metric that binning made inexact, the most it can be off; empty where all are exact.
        intervals: Confidence intervals by metric; empty unless asked for.
        missing: For each metric that does not exist, why.
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
        """JSON-safe: a threshold that is no finite number becomes None."""
        value = asdict(self)
        for part in (value, *value["by_defect"].values(), *value["by_size"].values()):
            threshold = part["threshold"]
            part["threshold"] = threshold if threshold is not None and np.isfinite(threshold) else None
        return value


class Meter(PixelAccumulator):
    """A gatherer whose counts are all that pixel metrics need."""

    exact: bool
    """Whether its levels are distinct values, not bins."""

    def result(self) -> PixelMetrics:
        """All metrics of the maps so far."""
        by_size = {name: self._metrics(group) for name, group in self.sizes().items()}
        return self._metrics(
            self.whole,
            by_defect={kind: self._metrics(group) for kind, group in self.defects().items()},
            by_size={name: metrics for name, metrics in by_size.items() if metrics.regions},
        )

    def curves(self) -> dict[str, Curve]:
        """Curves `roc`, `pr` and `pro` (per-region overlap over false-positive rate), of about 500 points.

        Empty where there are no normal or no defective pixels.
        """
        return self.tally().curves()

    def _metrics(self, group: Group, **parts: Any) -> PixelMetrics:
        tally = self.tally(group)
        counted: dict[str, Any] = {"images": int(tally.images), "regions": int(tally.regions), **parts}
        counted["threshold"] = self.threshold
        absent = tally.absent()
        if absent:
            return PixelMetrics(**counted, missing=dict.fromkeys((*_RANKING, *_JUDGED), absent))
        found: dict[str, Any] = {name: float(value) for name, value in tally.ranked().items()}
        found["f1_max_threshold"] = tally.f1_max_threshold()
        missing = {}
        if self.threshold is None:
            missing = dict.fromkeys(_JUDGED, "there is no pixel threshold")
        else:
            found |= {name: float(value) for name, value in tally.judged().items() if np.isfinite(value)}
            missing = {} if "precision" in found else {"precision": "no pixel is called anomalous"}
        return PixelMetrics(**counted, **found, errors={} if self.exact else tally.errors(), missing=missing)
