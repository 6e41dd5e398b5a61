"""Pixel counts per level, and the pixel metrics computed from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adctl.metrics import ranking
from adctl.metrics.curves import Curve
from adctl.metrics.ranking import PRO_LIMIT, STRICT_PRO_LIMIT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adctl.metrics.labels import Floats
    from adctl.metrics.regions import ThresholdedPixels

_CURVE_POINTS = 500


@dataclass(frozen=True)
class PixelCounts:
    """Number of pixels per level of map values; levels ascend, leading axes are resamples.

    Attributes:
        levels: Lowest value of each level [k].
        normal: Number of normal pixels per level [...,k].
        defective: Number of defective pixels per level [...,k].
        overlap: Sum of 1 / region area over the defective pixels of each level [...,k].
        images: Number of images [...].
        regions: Number of regions [...].
        false_positives: Number of normal pixels above the threshold [...].
        true_positives: Number of defective pixels above the threshold [...].
        region_overlap: Sum over regions of the share of their pixels above the threshold [...].
        region_iou: Sum over regions of their IoU with the predicted components that touch them [...].
    """

    levels: Floats
    normal: Floats
    defective: Floats
    overlap: Floats
    images: Floats
    regions: Floats
    false_positives: Floats
    true_positives: Floats
    region_overlap: Floats
    region_iou: Floats

    @classmethod
    def from_counts(
        cls, levels: Floats, counts: tuple[Floats, Floats, Floats], above: ThresholdedPixels, sizes: tuple[int, ...]
    ) -> PixelCounts:
        """Combine counts per level (normal, defective, overlap) with the counts above the threshold for some sizes."""
        regions, true_positives, overlap, iou = (
            column[..., list(sizes)].sum(axis=-1)
            for column in (above.regions, above.true_positives, above.overlap, above.iou)
        )
        return cls(levels, *counts, above.images, regions, above.false_positives, true_positives, overlap, iou)

    @property
    def defects(self) -> Floats:
        """Number of defective pixels [...]."""
        return np.asarray(self.defective.sum(axis=-1))

    def f1_max_threshold(self) -> float:
        """Return the threshold just below the lowest value of the level with the highest F1."""
        best = int(ranking.f1_by_level(self.normal, self.defective).argmax())
        return float(np.nextafter(self.levels[best], -np.inf))

    def absent_pixels(self) -> str:
        """Return which kind of pixels is absent, in words; empty if both kinds are there."""
        normal, defective = self.normal.any(), self.defective.any()
        if not normal and not defective:
            return "there are no maps"
        return "" if normal and defective else f"there are no {'defective' if normal else 'normal'} pixels"

    def curves(self) -> dict[str, Curve]:
        """Return the curves `roc`, `pr` and `pro` (per-region overlap over false-positive rate), about 500 points each.

        The dictionary is empty if there are no normal or no defective pixels.
        """
        if self.absent_pixels():
            return {}
        tp, fp = ranking.counts_above(self.defective), ranking.counts_above(self.normal)
        fpr, tpr = fp / fp[-1], tp / tp[-1]
        pro = ranking.counts_above(self.overlap) / self.regions
        precision = np.divide(tp, tp + fp, out=np.ones_like(tp), where=tp + fp > 0)
        highest = float(np.nextafter(self.levels[-1], np.inf))
        thresholds = np.append(highest, self.levels[::-1])
        keep = _thinned(fpr + tpr, _CURVE_POINTS)
        return {
            "roc": Curve(fpr[keep], tpr[keep], thresholds[keep]),
            "pr": Curve(tpr[keep], precision[keep], thresholds[keep]),
            "pro": Curve(fpr[keep], pro[keep], thresholds[keep]),
        }

    def representative_levels(self, number: int) -> Floats:
        """Return at most `number` levels, ascending, that keep the metrics as accurate as possible.

        They are spread evenly over recall, false-positive rate, and the false-positive rates below both AUPRO limits.
        """
        fpr, tpr = ranking.rates_above(self.normal), ranking.rates_above(self.defective)
        weight = tpr + fpr + np.minimum(fpr / PRO_LIMIT, 1) + np.minimum(fpr / STRICT_PRO_LIMIT, 1)
        keep = _thinned(weight, number)[1:]
        return self.levels[::-1][keep - 1][::-1]


def _thinned(values: Floats, number: int) -> NDArray[np.intp]:
    """Return about `number` indices, evenly spread over ascending values, including the first and the last."""
    indices = np.searchsorted(values, np.linspace(values[0], values[-1], number - 2))
    return np.unique(np.clip(np.append(indices, [0, len(values) - 1]), 0, len(values) - 1))
