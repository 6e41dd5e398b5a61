"""The counts pixel metrics are made of, whoever gathered them, and the metrics that follow. Knows no maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adctl.metrics import ranking
from adctl.metrics.curves import Curve

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adctl.metrics.labels import Floats
    from adctl.metrics.regions import ThresholdedPixels

PRO_LIMIT, STRICT_PRO_LIMIT = 0.30, 0.05
_CURVE_POINTS = 500


@dataclass(frozen=True)
class PixelCounts:
    """Pixels by the level their value falls into; levels ascend, leading axes are resamplings.

    Attributes:
        levels: The lowest value of each [k].
        normal: Normal pixels [...,k].
        defective: Defective pixels [...,k].
        overlap: The sum over the defective pixels of 1 / area of their region [...,k].
        images: Images [...].
        regions: Regions [...].
        false: Normal pixels above the threshold [...].
        hits: Defective pixels above it [...].
        region_overlap: The sum over regions of the share above it [...].
        region_iou: The sum over regions of their IoU with what is above it [...].
    """

    levels: Floats
    normal: Floats
    defective: Floats
    overlap: Floats
    images: Floats
    regions: Floats
    false: Floats
    hits: Floats
    region_overlap: Floats
    region_iou: Floats

    @classmethod
    def of(
        cls, levels: Floats, counts: tuple[Floats, Floats, Floats], judged: ThresholdedPixels, sizes: tuple[int, ...]
    ) -> PixelCounts:
        """From counts (normal, defective, overlap) and judgements, of regions of some sizes only."""
        regions, hits, overlap, iou = (
            column[..., list(sizes)].sum(axis=-1)
            for column in (judged.regions, judged.hits, judged.overlap, judged.iou)
        )
        return cls(levels, *counts, judged.images, regions, judged.false, hits, overlap, iou)

    def ranked(self) -> dict[str, Floats]:
        """Metrics that need no threshold, each [...]."""
        return {
            "auroc": ranking.auroc(self.normal, self.defective),
            "average_precision": ranking.average_precision(self.normal, self.defective),
            "aupro": ranking.aupro(self.normal, self.overlap, self.regions, PRO_LIMIT),
            "aupro_05": ranking.aupro(self.normal, self.overlap, self.regions, STRICT_PRO_LIMIT),
            "f1_max": ranking.f1_by_level(self.normal, self.defective).max(axis=-1),
        }

    def judged(self) -> dict[str, Floats]:
        """Metrics at the threshold, each [...]."""
        total = self.defective.sum(axis=-1)
        return {
            "iou": ranking.ratio(self.hits, total + self.false),
            "dice": ranking.ratio(2 * self.hits, total + self.hits + self.false),
            "precision": ranking.ratio(self.hits, self.hits + self.false),
            "recall": ranking.ratio(self.hits, total),
            "region_overlap": ranking.ratio(self.region_overlap, self.regions),
            "region_iou": ranking.ratio(self.region_iou, self.regions),
        }

    def errors(self) -> dict[str, float]:
        """The most each ranking metric can be off where levels are bins."""
        return {
            "auroc": float(ranking.auroc_error(self.normal, self.defective)),
            "average_precision": float(ranking.average_precision_error(self.normal, self.defective)),
            "aupro": float(ranking.aupro_error(self.normal, self.overlap, self.regions, PRO_LIMIT)),
            "aupro_05": float(ranking.aupro_error(self.normal, self.overlap, self.regions, STRICT_PRO_LIMIT)),
            "f1_max": float(ranking.f1_max_error(self.normal, self.defective)),
        }

    def f1_max_threshold(self) -> float:
        """Above it f1_max is reached: it stands just below the level's lowest value."""
        best = int(ranking.f1_by_level(self.normal, self.defective).argmax())
        return float(np.nextafter(self.levels[best], -np.inf))

    def absent(self) -> str:
        """Which pixels are not there; empty where both kinds are."""
        normal, defective = self.normal.any(), self.defective.any()
        if not normal and not defective:
            return "there are no maps"
        return "" if normal and defective else f"there are no {'defective' if normal else 'normal'} pixels"

    def curves(self) -> dict[str, Curve]:
        """Curves `roc`, `pr` and `pro` (per-region overlap over false-positive rate), thinned to about 500 points.

        Empty where there are no normal or no defective pixels.
        """
        if self.absent():
            return {}
        true, false = ranking.counts_above(self.defective), ranking.counts_above(self.normal)
        fpr, tpr = false / false[-1], true / true[-1]
        pro = ranking.counts_above(self.overlap) / self.regions
        precision = np.divide(true, true + false, out=np.ones_like(true), where=true + false > 0)
        highest = float(np.nextafter(self.levels[-1], np.inf))
        thresholds = np.append(highest, self.levels[::-1])
        keep = _thinned(fpr + tpr, _CURVE_POINTS)
        return {
            "roc": Curve(fpr[keep], tpr[keep], thresholds[keep]),
            "pr": Curve(tpr[keep], precision[keep], thresholds[keep]),
            "pro": Curve(fpr[keep], pro[keep], thresholds[keep]),
        }

    def telling_levels(self, number: int) -> Floats:
        """At most `number` of the levels on which metrics can be worked out with the least loss, ascending.

        Spread evenly over what the metrics weigh: recall, the false-positive rate, and its part below either limit.
        """
        fpr, tpr = ranking.rates_above(self.normal), ranking.rates_above(self.defective)
        along = tpr + fpr + np.minimum(fpr / PRO_LIMIT, 1) + np.minimum(fpr / STRICT_PRO_LIMIT, 1)
        keep = _thinned(along, number)[1:]
        return self.levels[::-1][keep - 1][::-1]


def _thinned(along: Floats, number: int) -> NDArray[np.intp]:
    """Indices of about `number` points, evenly spread along an ascending array; the first and the last among them."""
    wanted = np.searchsorted(along, np.linspace(along[0], along[-1], number - 2))
    return np.unique(np.clip(np.append(wanted, [0, len(along) - 1]), 0, len(along) - 1))
