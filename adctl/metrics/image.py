"""Metrics of image scores, as a whole and by defect type, with bootstrap intervals where asked for.

Knows scores, labels and one threshold; nothing of where a threshold comes from.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl.metrics import ranking
from adctl.metrics.bootstrap import Interval, Resampling, can_resample, percentile_interval, replicates
from adctl.metrics.labels import Bools, Floats, absent_class, check_labelled_scores, has_both_classes
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike

_RANKING = ("auroc", "average_precision", "f1_max", "fpr_at_95_tpr")
_COUNTS = ("tp", "fp", "tn", "fn")
_JUDGED = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "false_alarm_rate")


@dataclass(frozen=True)
class ImageMetrics:
    """Metrics of image scores; an image is called anomalous when its score is above the threshold.

    Attributes:
        good: Number of good images.
        defective: Number of defective images.
        auroc: Area under the ROC curve.
        average_precision: Mean precision over recall (sum of precision times the step in recall).
        f1_max: The highest F1 over all thresholds.
        f1_max_threshold: Above it f1_max is reached: halfway between the two scores it parts.
        fpr_at_95_tpr: Share of false alarms at the highest threshold that finds 95 % of the defects.
        threshold: The threshold the following rest on.
        accuracy: Share judged rightly.
        balanced_accuracy: Mean of the shares judged rightly in either class.
        precision: Share of the alarms that are defects.
        recall: Share of the defects that are found.
        f1: Harmonic mean of the two.
        false_alarm_rate: Share of good images called anomalous.
        tp: Defects found.
        fp: False alarms.
        tn: Good images passed.
        fn: Defects missed.
        intervals: Confidence intervals by metric; empty unless asked for, or where a class has fewer than two images.
        missing: For each metric that does not exist, why.
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
        """JSON-safe: a threshold that is no finite number becomes None."""
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
    """All image metrics.

    Args:
        scores: Raw scores [n].
        labels: True where defective [n].
        threshold: Above it an image is called anomalous; None leaves out what rests on it.
        resampling: For confidence intervals; None leaves them out.
        names: Of the images [n], to name those without a score.

    Raises:
        DataError: A score is not a finite number.
        ValueError: Scores and labels differ in length.
    """
    values, truth = check_labelled_scores(scores, labels, names)
    if not len(truth):
        missing = dict.fromkeys((*_RANKING, "f1_max_threshold"), absent_class(truth))
        missing |= dict.fromkeys(
            (*_COUNTS, *_JUDGED), "there is no threshold" if threshold is None else "there are no images"
        )
        return ImageMetrics(0, 0, threshold=threshold, missing=missing)
    measure = image_measure(values, truth, threshold)
    found: dict[str, Any] = {name: float(value[0]) for name, value in measure(np.ones((1, len(truth)))).items()}
    if has_both_classes(truth):
        found["f1_max_threshold"] = _f1_max_threshold(values, truth)
    found |= {name: int(found[name]) for name in _COUNTS if name in found}
    found = {name: value for name, value in found.items() if not np.isnan(value)}
    return ImageMetrics(
        good=int((~truth).sum()),
        defective=int(truth.sum()),
        threshold=threshold,
        **found,
        intervals=_intervals(truth, resampling, measure, set(found) - set(_COUNTS)) if resampling else {},
        missing=_missing(set(found), truth, threshold),
    )


def image_metrics_by_defect(
    scores: ArrayLike,
    labels: Sequence[str],
    threshold: float | None = None,
    *,
    resampling: Resampling | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, ImageMetrics]:
    """Image metrics of each defect type against all good images.

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
    chosen = {kind: ~defective | (kinds == kind) for kind in sorted(set(labels) - {GOOD})}
    return {
        kind: image_metrics(values[rows], defective[rows], threshold, resampling=resampling)
        for kind, rows in chosen.items()
    }


def image_measure(values: Floats, truth: Bools, threshold: float | None) -> Callable[[Floats], dict[str, Floats]]:
    """From how often each image counts [b,n] to the metrics [b]; NaN where one does not exist.

    Args:
        values: Raw scores [n].
        truth: True where defective [n].
        threshold: As for `image_metrics`.
    """
    order = np.argsort(values, kind="stable")
    first_of_ties = np.flatnonzero(np.append(True, np.diff(values[order]) != 0))

    def measure(counts: Floats) -> dict[str, Floats]:
        normal, defective = (
            np.add.reduceat((counts * kind)[:, order], first_of_ties, axis=1) for kind in (~truth, truth)
        )
        ranked = {
            "auroc": ranking.auroc(normal, defective),
            "average_precision": ranking.average_precision(normal, defective),
            "f1_max": ranking.f1_by_level(normal, defective).max(axis=-1),
            "fpr_at_95_tpr": ranking.fpr_at_tpr(normal, defective),
        }
        judged = {} if threshold is None else _judged(counts, values > threshold, truth)
        return (ranked if has_both_classes(truth) else {}) | judged

    return measure


def _judged(counts: Floats, alarms: Bools, truth: Bools) -> dict[str, Floats]:
    tp, fp, tn, fn = (counts @ kind for kind in (alarms & truth, alarms & ~truth, ~alarms & ~truth, ~alarms & truth))
    recall, specificity = ranking.ratio(tp, tp + fn), ranking.ratio(tn, tn + fp)
    return {
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
        "accuracy": ranking.ratio(tp + tn, tp + fp + tn + fn),
        "balanced_accuracy": (recall + specificity) / 2,
        "precision": ranking.ratio(tp, tp + fp),
        "recall": recall,
        "f1": ranking.ratio(2 * tp, 2 * tp + fp + fn),
        "false_alarm_rate": ranking.ratio(fp, fp + tn),
    }


def _intervals(
    truth: Bools, resampling: Resampling, measure: Callable[[Floats], dict[str, Floats]], names: set[str]
) -> dict[str, Interval]:
    if not can_resample(truth):
        return {}
    drawn = replicates(truth, resampling, measure)
    found = {name: percentile_interval(values, resampling.level) for name, values in drawn.items() if name in names}
    return {name: value for name, value in found.items() if value is not None}


def _missing(found: set[str], truth: Bools, threshold: float | None) -> dict[str, str]:
    reasons = dict.fromkeys((*_RANKING, "f1_max_threshold", *_JUDGED), absent_class(truth))
    reasons |= {"precision": "there are no alarms", "f1": "there are neither defects nor alarms"}
    if threshold is None:
        reasons |= dict.fromkeys((*_JUDGED, *_COUNTS), "there is no threshold")
    return {name: reason for name, reason in reasons.items() if name not in found}


def _f1_max_threshold(values: Floats, truth: Bools) -> float:
    """Above it, and not at it, the highest F1 is reached: halfway to the next lower score where there is one."""
    levels, level_of = np.unique(values, return_inverse=True)
    normal, defective = (
        np.bincount(level_of[kind], minlength=len(levels)).astype(np.float64) for kind in (~truth, truth)
    )
    best = int(ranking.f1_by_level(normal, defective).argmax())
    value = float(levels[best])
    if best == 0:
        return float(np.nextafter(value, -np.inf))
    before = float(levels[best - 1])
    middle = before / 2 + value / 2
    return middle if before <= middle < value else before
