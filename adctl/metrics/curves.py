"""ROC and precision-recall curves of image scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adctl.errors import DataError
from adctl.metrics.labels import Bools, Floats, absent_class, check_labelled_scores, has_both_classes

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Curve:
    """Points of a curve, each at one threshold.

    Attributes:
        x: Horizontal coordinates [n].
        y: Vertical coordinates [n].
        thresholds: Thresholds [n].
    """

    x: Floats
    y: Floats
    thresholds: Floats

    def to_dict(self) -> dict[str, list[float | None]]:
        """Return a JSON-safe dictionary; infinite thresholds become None."""
        columns = {"x": self.x, "y": self.y, "thresholds": self.thresholds}
        return {name: [float(v) if np.isfinite(v) else None for v in values] for name, values in columns.items()}


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    """Compute the false-alarm rate (x) and recall (y) over all thresholds, in falling order.

    Args:
        scores: Raw scores [n].
        labels: True for defective images [n].

    Raises:
        DataError: A score is not a finite number, or only one class is present.
    """
    values, truth = check_labelled_scores(scores, labels)
    _require_both_classes(truth)
    from sklearn import metrics as sk  # slow to import

    fpr, tpr, thresholds = sk.roc_curve(truth, values)
    return Curve(fpr, tpr, thresholds)


def precision_recall_curve(scores: ArrayLike, labels: ArrayLike) -> Curve:
    """Compute recall (x) and precision (y) over all thresholds, in rising order.

    Args:
        scores: Raw scores [n].
        labels: True for defective images [n].

    Raises:
        DataError: A score is not a finite number, or only one class is present.
    """
    values, truth = check_labelled_scores(scores, labels)
    _require_both_classes(truth)
    from sklearn import metrics as sk

    precision, recall, thresholds = sk.precision_recall_curve(truth, values, drop_intermediate=True)
    return Curve(recall, precision, np.append(thresholds, np.inf))


def _require_both_classes(truth: Bools) -> None:
    if not has_both_classes(truth):
        raise DataError(
            f"A curve needs good and defective images, but {absent_class(truth)}.", "Add labelled images of both kinds."
        )
