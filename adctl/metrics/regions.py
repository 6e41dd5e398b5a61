"""One map against its mask: its pixels by kind, its defects region by region, and what a threshold makes of them.

A region is an 8-connected part of a mask. Knows one image at a time.
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
"""Of regions by their share of the image: below 1/300, below 3/100, and above.

These are COCO's bounds of 32 x 32 and 96 x 96 pixels as shares of its usual image of 640 x 480 (Lin et al., "Microsoft
COCO: Common Objects in Context", ECCV 2014; bounds in its evaluation protocol), so that they hold at any resolution.
"""

SIZE_BOUNDS = (1 / 300, 3 / 100)


@dataclass(frozen=True)
class ThresholdedPixels:
    """What a threshold makes of the pixels of one image or, added up, of many; S sizes of regions.

    Attributes:
        images: Images [...].
        false: Normal pixels that are called anomalous [...].
        regions: Regions [...,S].
        hits: Defective pixels that are called [...,S].
        overlap: The sum over regions of the share of their pixels that is called [...,S].
        iou: The sum over regions of their IoU with the called regions that touch them [...,S].
    """

    images: Floats
    false: Floats
    regions: Floats
    hits: Floats
    overlap: Floats
    iou: Floats

    @classmethod
    def nothing(cls) -> ThresholdedPixels:
        """Of no image."""
        return cls(np.zeros(()), np.zeros(()), *(np.zeros(len(SIZES)) for _ in range(4)))

    def __add__(self, other: ThresholdedPixels) -> ThresholdedPixels:
        return ThresholdedPixels(*(mine + others for mine, others in zip(self.columns(), other.columns(), strict=True)))

    def columns(self) -> list[Floats]:
        """Its arrays, in order."""
        return [getattr(self, column.name) for column in fields(self)]


@dataclass(frozen=True)
class MapPixels:
    """The pixels of one map.

    Attributes:
        normal: Values of the normal pixels [n].
        inside: Values of the defective pixels [d].
        size: Index into `SIZES` of the region of each defective pixel [d].
        share: 1 / area of that region [d].
        judged: What the threshold makes of them; no pixel is called where there is no threshold.
    """

    normal: NDArray[Any]
    inside: NDArray[Any]
    size: NDArray[np.intp]
    share: Floats
    judged: ThresholdedPixels


def split_by_mask(values: NDArray[Any], truth: Bools | None, threshold: float | None) -> MapPixels:
    """Part a map [H,W] by its mask [H,W]; None is an image without defect."""
    # In float64: a float32 map would round the threshold to its own precision.
    called = None if threshold is None else values > np.float64(threshold)
    if truth is None:
        false = np.array(0.0 if called is None else np.count_nonzero(called), np.float64)
        none = np.empty(0)
        judged = ThresholdedPixels(np.ones(()), false, *(np.zeros(len(SIZES)) for _ in range(4)))
        return MapPixels(values.ravel(), none.astype(values.dtype), none.astype(np.intp), none, judged)
    _, regions, statistics, _ = cv2.connectedComponentsWithStats(truth.astype(np.uint8), connectivity=8)
    areas = statistics[1:, cv2.CC_STAT_AREA].astype(np.float64)
    size_of = np.searchsorted(SIZE_BOUNDS, areas / truth.size, side="right")
    region = regions[truth].astype(np.intp) - 1
    judged = _judge(called, truth, region, areas, size_of)
    return MapPixels(values[~truth], values[truth], size_of[region], 1.0 / areas[region], judged)


def _judge(
    called: Bools | None, truth: Bools, region: NDArray[np.intp], areas: Floats, size_of: NDArray[np.intp]
) -> ThresholdedPixels:
    def by_size(numbers: Floats | None = None) -> Floats:
        return np.bincount(size_of, weights=numbers, minlength=len(SIZES)).astype(np.float64)

    if called is None:
        nothing = np.zeros(len(SIZES))
        return ThresholdedPixels(np.ones(()), np.zeros(()), by_size(), nothing, nothing, nothing)
    hits = np.bincount(region[called[truth]], minlength=len(areas)).astype(np.float64)
    false = np.array(np.count_nonzero(called & ~truth), np.float64)
    iou = hits / (areas + _normal_pixels_touching(called, truth, region, len(areas)))
    return ThresholdedPixels(np.ones(()), false, by_size(), by_size(hits), by_size(hits / areas), by_size(iou))


def _normal_pixels_touching(called: Bools, truth: Bools, region: NDArray[np.intp], count: int) -> Floats:
    """For each region, the normal pixels of all called regions that share a pixel with it."""
    _, found = cv2.connectedComponents(called.astype(np.uint8), connectivity=8)
    normal = np.bincount(found[called & ~truth], minlength=found.max() + 1)
    partner = found[truth]
    pairs = np.unique(np.stack([region[partner > 0], partner[partner > 0]]), axis=1)
    return np.bincount(pairs[0], weights=normal[pairs[1]], minlength=count).astype(np.float64)
