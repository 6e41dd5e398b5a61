"""What everything that takes maps and masks shares: checks, labels, and the groups that metrics are given for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.errors import DataError
from adctl.metrics.regions import SIZES, MapPixels, split_by_mask
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from adctl.metrics.pixel_counts import PixelCounts

Label = str | None
"""`"good"`, a defect type, or None for an image whose defect has no name: it counts in the whole and in no type."""

Group = tuple[tuple[Label, ...], tuple[int, ...]]
"""Labels of the images, and indices of the sizes of the regions, that a metric is worked out over."""

ALL_SIZES = tuple(range(len(SIZES)))


class PixelAccumulator(ABC):
    """Takes maps one at a time.

    Args:
        threshold: Above it a pixel is called anomalous; None where there is none.
    """

    def __init__(self, threshold: float | None = None) -> None:
        self.threshold = threshold

    def add(self, anomaly_map: NDArray[Any], mask: NDArray[Any] | None = None, defect: str | None = None) -> None:
        """Take one map.

        Args:
            anomaly_map: Array [H,W].
            mask: Array [H,W], true where defective; None for an image without defect.
            defect: Its kind; None for an image without defect, or where the kind is not known.

        Raises:
            DataError: A value is not a finite number.
            ValueError: Shapes differ, or mask and kind contradict each other.
        """
        values = _floats(anomaly_map)
        truth = None if mask is None else np.asarray(mask, np.bool_)
        if truth is not None and truth.shape != values.shape:
            raise ValueError(f"map and mask must have one shape. Got {values.shape} and {truth.shape} instead.")
        defective = truth is not None and bool(truth.any())
        label = _label(defect, masked=mask is not None, defective=defective)
        self._take(label, split_by_mask(values, truth if defective else None, self.threshold))

    @property
    @abstractmethod
    def labels(self) -> Iterable[Label]:
        """Of the maps so far."""

    @abstractmethod
    def _take(self, label: Label, parts: MapPixels) -> None:
        """Keep what is needed of one map."""

    @abstractmethod
    def tally(self, group: Group | None = None) -> PixelCounts:
        """What was counted, over all or over one group."""

    @property
    def whole(self) -> Group:
        """All maps and regions."""
        return tuple(self.labels), ALL_SIZES

    def defects(self) -> dict[str, Group]:
        """Each defect type: its images and the good ones."""
        kinds = sorted(kind for kind in self.labels if kind not in (GOOD, None))
        return {kind: ((GOOD, kind), ALL_SIZES) for kind in kinds if kind is not None}

    def sizes(self) -> dict[str, Group]:
        """Each size of region: its pixels and all normal ones."""
        return {name: (tuple(self.labels), (index,)) for index, name in enumerate(SIZES)}


def _floats(anomaly_map: NDArray[Any]) -> NDArray[Any]:
    """The map as floats of its own precision, which must be finite."""
    values = np.asarray(anomaly_map)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    broken = values.size - np.count_nonzero(np.isfinite(values))
    if broken:
        raise DataError(f"{broken} of {values.size} map values are not finite numbers.", "Score again, or train again.")
    return values


def _label(defect: str | None, *, masked: bool, defective: bool) -> Label:
    """Under which label an image counts; what is called good must be so, and a defect needs its mask."""
    if defect in (None, GOOD):
        if defective and defect == GOOD:
            raise ValueError("a good image must have no defective pixels.")
        return None if defective else GOOD
    if not masked:
        raise ValueError(f"an image with a defect must come with its mask. Got '{defect}' and no mask instead.")
    return defect
