"""Base class of everything that takes maps and masks: checks, labels, and the groups that metrics are computed for."""

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
"""`"good"`, a defect type, or None for a defect of unknown type, which counts in the total but in no defect type."""

Group = tuple[tuple[Label, ...], tuple[int, ...]]
"""Labels of images, and indices of region sizes, that a metric is computed over."""

ALL_SIZES = tuple(range(len(SIZES)))


class PixelAccumulator(ABC):
    """Takes maps and masks one at a time and counts their pixels.

    Args:
        threshold: Pixels above it are anomalous; None if there is no threshold.
    """

    def __init__(self, threshold: float | None = None) -> None:
        self.threshold = threshold

    def add(self, anomaly_map: NDArray[Any], mask: NDArray[Any] | None = None, defect: str | None = None) -> None:
        """Add one map.

        Args:
            anomaly_map: Array [H,W].
            mask: Array [H,W], true where defective; None for an image without defect.
            defect: Defect type; None for an image without defect, or if the type is unknown.

        Raises:
            DataError: A value is not a finite number.
            ValueError: Shapes differ, or mask and defect type contradict each other.
        """
        values = _check_map(anomaly_map)
        truth = None if mask is None else np.asarray(mask, np.bool_)
        if truth is not None and truth.shape != values.shape:
            raise ValueError(f"map and mask must have one shape. Got {values.shape} and {truth.shape} instead.")
        defective = truth is not None and bool(truth.any())
        label = _label(defect, masked=mask is not None, defective=defective)
        self._store(label, split_by_mask(values, truth if defective else None, self.threshold))

    @property
    @abstractmethod
    def labels(self) -> Iterable[Label]:
        """Labels of the maps added so far, each once."""

    @abstractmethod
    def _store(self, label: Label, pixels: MapPixels) -> None:
        """Keep what the metrics need from one map."""

    @abstractmethod
    def counts(self, group: Group | None = None) -> PixelCounts:
        """Return the pixel counts of one group, or of everything."""

    @property
    def whole(self) -> Group:
        """Group of all maps and regions."""
        return tuple(self.labels), ALL_SIZES

    def defect_groups(self) -> dict[str, Group]:
        """Return one group per defect type: its images and the good ones."""
        kinds = sorted(kind for kind in self.labels if kind not in (GOOD, None))
        return {kind: ((GOOD, kind), ALL_SIZES) for kind in kinds if kind is not None}

    def size_groups(self) -> dict[str, Group]:
        """Return one group per region size: its defective pixels and all normal pixels."""
        return {name: (tuple(self.labels), (index,)) for index, name in enumerate(SIZES)}


def _check_map(anomaly_map: NDArray[Any]) -> NDArray[Any]:
    """Return the map as float32 or float64, after checking that all values are finite."""
    values = np.asarray(anomaly_map)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    broken = values.size - np.count_nonzero(np.isfinite(values))
    if broken:
        raise DataError(f"{broken} of {values.size} map values are not finite numbers.", "Score again, or train again.")
    return values


def _label(defect: str | None, *, masked: bool, defective: bool) -> Label:
    """Return the label of an image, after checking that its defect type and mask agree."""
    if defect in (None, GOOD):
        if defective and defect == GOOD:
            raise ValueError("a good image must have no defective pixels.")
        return None if defective else GOOD
    if not masked:
        raise ValueError(f"an image with a defect must come with its mask. Got '{defect}' and no mask instead.")
    return defect
