"""Pixels of one anomaly map, divided by its mask and compared with a threshold.

A region is an 8-connected component of a mask.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adctl.metrics.labels import Bools, Floats

SIZES = ("small", "medium", "large")
"""Sizes of regions by their share of the image: below 1/300, below 3/100, and larger.

They are COCO's limits of 32 x 32 and 96 x 96 pixels as shares of its usual 640 x 480 image, so that they apply at every
resolution (Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; limits from its evaluation protocol).
"""

SIZE_BOUNDS = (1 / 300, 3 / 100)


@dataclass(frozen=True)
class ThresholdedPixels:
    """Counts of the pixels above the threshold, for one image or summed over images; S sizes of regions.

    Attributes:
        images: Number of images [...].
        false_positives: Number of normal pixels above the threshold [...].
        regions: Number of regions [...,S].
        true_positives: Number of defective pixels above the threshold [...,S].
        overlap: Sum over regions of the share of their pixels above the threshold [...,S].
        iou: Sum over regions of their IoU with the predicted components that touch them [...,S].
    """

    images: Floats
    false_positives: Floats
    regions: Floats
    true_positives: Floats
    overlap: Floats
    iou: Floats

    @classmethod
    def zero(cls) -> ThresholdedPixels:
        """Return the counts of no images."""
        return cls(np.zeros(()), np.zeros(()), *(np.zeros(len(SIZES)) for _ in range(4)))

    def __add__(self, other: ThresholdedPixels) -> ThresholdedPixels:
        return ThresholdedPixels(*(a + b for a, b in zip(self.arrays(), other.arrays(), strict=True)))

    def arrays(self) -> list[Floats]:
        """Return the arrays in the order of the attributes."""
        return [getattr(self, column.name) for column in fields(self)]


@dataclass(frozen=True)
class MapPixels:
    """The pixels of one map, divided by its mask.

    Attributes:
        normal: Values of the normal pixels [n].
        defective: Values of the defective pixels [d].
        size_index: For each defective pixel, index into `SIZES` of its region [d].
        inverse_area: For each defective pixel, 1 / area of its region [d].
        thresholded: Counts of the pixels above the threshold; zero if there is no threshold.
    """

    normal: NDArray[Any]
    defective: NDArray[Any]
    size_index: NDArray[np.intp]
    inverse_area: Floats
    thresholded: ThresholdedPixels


def split_by_mask(values: NDArray[Any], mask: Bools | None, threshold: float | None) -> MapPixels:
    """Divide a map [H,W] into normal and defective pixels by its mask [H,W]; None means no defect."""
    # Compared in float64: a float32 map would round the threshold to float32.
    positive = None if threshold is None else values > np.float64(threshold)
    if mask is None:
        false_positives = np.array(0.0 if positive is None else np.count_nonzero(positive), np.float64)
        none = np.empty(0)
        thresholded = ThresholdedPixels(np.ones(()), false_positives, *(np.zeros(len(SIZES)) for _ in range(4)))
        return MapPixels(values.ravel(), none.astype(values.dtype), none.astype(np.intp), none, thresholded)
    _, components, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = statistics[1:, cv2.CC_STAT_AREA].astype(np.float64)
    sizes = np.searchsorted(SIZE_BOUNDS, areas / mask.size, side="right")
    region = components[mask].astype(np.intp) - 1
    thresholded = _count_positives(positive, mask, region, areas, sizes)
    return MapPixels(values[~mask], values[mask], sizes[region], 1.0 / areas[region], thresholded)


def _count_positives(
    positive: Bools | None, mask: Bools, region: NDArray[np.intp], areas: Floats, sizes: NDArray[np.intp]
) -> ThresholdedPixels:
    def by_size(values: Floats | None = None) -> Floats:
        return np.bincount(sizes, weights=values, minlength=len(SIZES)).astype(np.float64)

    if positive is None:
        zeros = np.zeros(len(SIZES))
        return ThresholdedPixels(np.ones(()), np.zeros(()), by_size(), zeros, zeros, zeros)
    hits = np.bincount(region[positive[mask]], minlength=len(areas)).astype(np.float64)
    false_positives = np.array(np.count_nonzero(positive & ~mask), np.float64)
    iou = hits / (areas + _touching_false_positives(positive, mask, region, len(areas)))
    sums = (by_size(values) for values in (None, hits, hits / areas, iou))
    return ThresholdedPixels(np.ones(()), false_positives, *sums)


def _touching_false_positives(positive: Bools, mask: Bools, region: NDArray[np.intp], count: int) -> Floats:
    """Count, for each region, the normal pixels of all predicted components that share a pixel with it."""
    _, components = cv2.connectedComponents(positive.astype(np.uint8), connectivity=8)
    normal = np.bincount(components[positive & ~mask], minlength=components.max() + 1)
    overlapping = components[mask]
    pairs = np.unique(np.stack([region[overlapping > 0], overlapping[overlapping > 0]]), axis=1)
    return np.bincount(pairs[0], weights=normal[pairs[1]], minlength=count).astype(np.float64)
