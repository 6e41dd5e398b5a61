"""Metrics of image scores, overall and by defect type, with optional bootstrap intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.metrics import ranking
from adctl.metrics.bootstrap import (
    Interval,
    Resampling,
    can_resample,
    exact_interval,
    percentile_interval,
    replicates,
)
from adctl.metrics.labels import Bools, Floats, absent_class, check_labelled_scores, has_both_classes
from adctl.metrics.table import IMAGE, ImageCounts, names_of, values_of
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike

_RANKING = (*names_of(IMAGE, at_threshold=False), "f1_max_threshold")
_AT_THRESHOLD = names_of(IMAGE, at_threshold=True)
_COUNTS = {metric.name for metric in IMAGE if metric.is_count}


@dataclass(frozen=True)
class ImageMetrics:
    """Metrics of image scores; an image is predicted anomalous if its score is above the threshold.

    Attributes:
        good: Number of good images.
        defective: Number of defective images.
        auroc: Area under the ROC curve.
        average_precision: Sum of precision times the step in recall.
        f1_max: Highest F1 over all thresholds.
        f1_max_threshold: Threshold that reaches `f1_max`, halfway between the two scores it separates.
        fpr_at_95_tpr: False-alarm rate at the highest threshold that finds 95 % of the defects.
        threshold: Threshold of the metrics below.
        accuracy: Share of correct decisions.
        balanced_accuracy: Mean over both classes of the share of correct decisions.
        precision: Share of the alarms that are defects.
        recall: Share of the defects that are found.
        f1: Harmonic mean of precision and recall.
        false_alarm_rate: Share of good images predicted anomalous.
        tp: Number of defects found.
        fp: Number of false alarms.
        tn: Number of good images passed.
        fn: Number of defects missed.
        intervals: Confidence intervals by metric; empty unless requested. Shares of images have exact ones, all others
            bootstrap intervals if each class has at least two images.
        missing: For each metric that does not exist, the reason.
    """

    good: int
    defective: int
    auroc: float | None = None
    average_precision: float | None = None
    f1_max: float | None = None
    f1_max_threshold: float | None = None
    fpr_at_95_tpr: float | None = None
    threshold: float | None = None
    accuracy: float | None = None
    balanced_accuracy: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    false_alarm_rate: float | None = None
    tp: int | None = None
    fp: int | None = None
    tn: int | None = None
    fn: int | None = None
    intervals: dict[str, Interval] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-safe dictionary; a threshold that is not finite becomes None."""
        threshold = self.threshold if self.threshold is not None and np.isfinite(self.threshold) else None
        return asdict(self) | {"threshold": threshold}


def image_metrics(
    scores: ArrayLike,
    labels: ArrayLike,
    threshold: float | None = None,
    *,
    resampling: Resampling | None = None,
    names: Sequence[str] | None = None,
) -> ImageMetrics:
    """Compute all image metrics.

    Args:
        scores: Raw scores [n].
        labels: True for defective images [n].
        threshold: Images above it are predicted anomalous; None leaves out the metrics that need it.
        resampling: Bootstrap settings for confidence intervals; None leaves them out.
        names: Image names [n] for the error message.

    Raises:
        DataError: A score is not a finite number.
        ValueError: Scores and labels differ in length.
    """
    values, truth = check_labelled_scores(scores, labels, names)
    if not len(truth):
        missing = dict.fromkeys(_RANKING, absent_class(truth))
        missing |= dict.fromkeys(_AT_THRESHOLD, "there is no threshold" if threshold is None else "there are no images")
        return ImageMetrics(0, 0, threshold=threshold, missing=missing)
    measure = image_measure(values, truth, threshold)
    metrics: dict[str, Any] = {name: float(value[0]) for name, value in measure(np.ones((1, len(truth)))).items()}
    if has_both_classes(truth):
        metrics["f1_max_threshold"] = _f1_max_threshold(values, truth)
    metrics |= {name: int(metrics[name]) for name in _COUNTS if name in metrics}
    metrics = {name: value for name, value in metrics.items() if not np.isnan(value)}
    return ImageMetrics(
        good=int((~truth).sum()),
        defective=int(truth.sum()),
        threshold=threshold,
        **metrics,
        intervals=_intervals(truth, resampling, measure, metrics) if resampling else {},
        missing=_missing(set(metrics), truth, threshold),
    )


def image_metrics_by_defect(
    scores: ArrayLike,
    labels: Sequence[str],
    threshold: float | None = None,
    *,
    resampling: Resampling | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, ImageMetrics]:
    """Compute the image metrics of each defect type against all good images.

    Args:
        scores: Raw scores [n].
        labels: `"good"` or the defect type of each image [n].
        threshold: As for `image_metrics`.
        resampling: As for `image_metrics`.
        names: As for `image_metrics`.

    Raises:
        DataError: A score is not a finite number.
    """
    kinds = np.asarray(labels, np.str_)
    values, defective = check_labelled_scores(scores, kinds != GOOD, names)
    rows_of = {kind: ~defective | (kinds == kind) for kind in sorted(set(labels) - {GOOD})}
    return {
        kind: image_metrics(values[rows], defective[rows], threshold, resampling=resampling)
        for kind, rows in rows_of.items()
    }


def image_measure(values: Floats, truth: Bools, threshold: float | None) -> Callable[[Floats], dict[str, Floats]]:
    """Return the function from how often each image was drawn [b,n] to the metrics [b]; NaN where one does not exist.

    Args:
        values: Raw scores [n].
        truth: True for defective images [n].
        threshold: As for `image_metrics`.
    """
    order = np.argsort(values, kind="stable")
    alarms = values > (np.inf if threshold is None else threshold)
    first_of_ties = np.flatnonzero(np.append(True, np.diff(values[order]) != 0))

    def measure(counts: Floats) -> dict[str, Floats]:
        normal, defective = (
            np.add.reduceat((counts * members)[:, order], first_of_ties, axis=1) for members in (~truth, truth)
        )
        found = ImageCounts(normal, defective, *(counts @ members for members in _outcomes(alarms, truth)))
        ranked = values_of(IMAGE, found, at_threshold=False) if has_both_classes(truth) else {}
        return ranked if threshold is None else ranked | values_of(IMAGE, found, at_threshold=True)

    return measure


def _outcomes(alarms: Bools, truth: Bools) -> tuple[Bools, Bools, Bools, Bools]:
    """Return where alarms [n] are true positives, false positives, true negatives and false negatives."""
    return alarms & truth, alarms & ~truth, ~alarms & ~truth, ~alarms & truth


def _intervals(
    truth: Bools, resampling: Resampling, measure: Callable[[Floats], dict[str, Floats]], metrics: dict[str, Any]
) -> dict[str, Interval]:
    exact = {}
    for metric in IMAGE:
        if metric.share is not None and metric.name in metrics:
            count, total = (sum(metrics[name] for name in names) for names in metric.share)
            exact[metric.name] = exact_interval(count, total, resampling.level)
    if not can_resample(truth):
        return exact
    drawn = replicates(truth, resampling, measure)
    others = metrics.keys() - _COUNTS - exact.keys()
    found = {name: percentile_interval(values, resampling.level) for name, values in drawn.items() if name in others}
    return {name: value for name, value in found.items() if value is not None} | exact


def _missing(existing: set[str], truth: Bools, threshold: float | None) -> dict[str, str]:
    reasons = dict.fromkeys((*_RANKING, *_AT_THRESHOLD), absent_class(truth))
    reasons |= {metric.name: metric.undefined for metric in IMAGE if metric.undefined}
    if threshold is None:
        reasons |= dict.fromkeys(_AT_THRESHOLD, "there is no threshold")
    return {name: reason for name, reason in reasons.items() if name not in existing}


def _f1_max_threshold(values: Floats, truth: Bools) -> float:
    """Return the threshold with the highest F1: halfway to the next lower score, or just below the lowest one."""
    levels, level_of = np.unique(values, return_inverse=True)
    normal, defective = (
        np.bincount(level_of[members], minlength=len(levels)).astype(np.float64) for members in (~truth, truth)
    )
    best = int(ranking.f1_by_level(normal, defective).argmax())
    value = float(levels[best])
    if best == 0:
        return float(np.nextafter(value, -np.inf))
    lower = float(levels[best - 1])
    middle = lower / 2 + value / 2
    return middle if lower <= middle < value else lower
