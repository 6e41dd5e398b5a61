"""Evaluation of a scored set: image metrics, metrics by defect type and pixel metrics, optionally with intervals.

It computes metrics and does not write pages. `pixels.py` evaluates the anomaly maps.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adctl.data.datasets.ground_truth import doubtful_label_notes
from adctl.errors import DataError
from adctl.evaluation.pixels import measure_pixels
from adctl.metrics.curves import Curve, precision_recall_curve, roc_curve
from adctl.metrics.image import ImageMetrics, image_metrics, image_metrics_by_defect
from adctl.metrics.statistics import Distribution, EffectSize, distributions, effect_size
from adctl.records import GOOD, Verdict

if TYPE_CHECKING:
    from adctl.metrics.bootstrap import Resampling
    from adctl.metrics.pixel import PixelMetrics
    from adctl.records import ScoredImage
    from adctl.scoring.score_set import ScoreSet


_BINS = 32
_MAX_NAMED = 5


@dataclass(frozen=True)
class ScoreBins:
    """Histogram of the scores of each class, with the same bins of equal width for all classes.

    Attributes:
        low: Lower edge of the first bin: the lowest score.
        high: Upper edge of the last bin: the highest score.
        counts: Number of images in each bin, by class (`good`, `defective`, `no label`); empty classes are left out.
    """

    low: float
    high: float
    counts: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Evaluation:
    """Metrics, curves and score statistics of a scored set.

    Attributes:
        images: Number of rows in the set.
        verdicts: Number of images with each verdict.
        image: Image metrics over the labelled images.
        by_defect: Image metrics of each defect type against all good images.
        pixel: Pixel metrics, also by defect type and size; None without anomaly maps or masks.
        curves: Curves `roc`, `pr`, `pixel_roc`, `pixel_pr` and `pixel_pro`, as far as they exist.
        notes: Full sentences that say which results are missing and why.
        distributions: Statistics of the scores of the good images and of each defect type.
        effect_size: Distance between the scores of defective and good images; None if a class has no image.
        resampling: Bootstrap settings of the confidence intervals; None without intervals.
        bins: Histogram of the scores; None if there are no scores.
        pixel_resolution: Size at which pixels were evaluated, for people; empty without pixel metrics.
    """

    images: int
    verdicts: dict[str, int]
    image: ImageMetrics
    by_defect: dict[str, ImageMetrics]
    pixel: PixelMetrics | None
    curves: dict[str, Curve]
    notes: tuple[str, ...]
    distributions: dict[str, Distribution] = field(default_factory=dict)
    effect_size: EffectSize | None = None
    resampling: Resampling | None = None
    bins: ScoreBins | None = None
    pixel_resolution: str = ""


def evaluate(
    scores: ScoreSet,
    resampling: Resampling | None = None,
    *,
    pixel_intervals: bool = True,
    pixel_size: int | tuple[int, int] | None = None,
) -> Evaluation:
    """Compute every metric that the scored set allows.

    Args:
        scores: Scored set, read from disk.
        resampling: Bootstrap settings for confidence intervals; None computes no intervals.
        pixel_intervals: Whether to compute intervals of pixel metrics too; this reads every map a second time.
        pixel_size: Size at which pixels are evaluated; see `adctl.evaluation.pixels.measure_pixels`.

    Raises:
        DataError: Scores or maps are damaged or not finite numbers; the message names the images.
    """
    _check_scores(scores)
    labelled = [
        (row.score, row.label, row.key) for row in scores.rows if row.score is not None and row.label is not None
    ]
    values, labels = [score for score, _, _ in labelled], [label for _, label, _ in labelled]
    names = [key for _, _, key in labelled]
    threshold = scores.calibration.threshold if scores.calibration else None
    image = image_metrics(values, [label != GOOD for label in labels], threshold, resampling=resampling, names=names)
    pixels = measure_pixels(scores, resampling if pixel_intervals else None, pixel_size)
    notes = [*_set_notes(scores, len(labelled)), *(_missing_metric_notes(image) if labelled else []), *pixels.notes]
    if resampling and labelled:
        notes += _interval_notes(image)
    return Evaluation(
        images=len(scores.rows),
        verdicts=dict(Counter(str(row.verdict) for row in scores.rows)),
        image=image,
        by_defect=image_metrics_by_defect(values, labels, threshold, resampling=resampling),
        pixel=pixels.metrics,
        curves=_curves(values, labels) | {f"pixel_{name}": curve for name, curve in pixels.curves.items()},
        notes=tuple(notes),
        distributions=distributions(values, labels),
        effect_size=effect_size(*_split_by_label(values, labels)),
        resampling=resampling,
        bins=_bins(scores),
        pixel_resolution=pixels.resolution,
    )


def _bins(scores: ScoreSet) -> ScoreBins | None:
    classes: dict[str, list[float]] = {}
    for row in scores.rows:
        if row.score is not None:
            kind = "no label" if row.label is None else GOOD if row.label == GOOD else "defective"
            classes.setdefault(kind, []).append(row.score)
    if not classes:
        return None
    low, high = min(map(min, classes.values())), max(map(max, classes.values()))
    counts = {}
    for kind in ("good", "defective", "no label"):
        if kind in classes:
            bins = [min(_BINS - 1, int(_BINS * (value - low) / ((high - low) or 1))) for value in classes[kind]]
            counts[kind] = tuple(bins.count(number) for number in range(_BINS))
    return ScoreBins(low, high, counts)


def _check_scores(scores: ScoreSet) -> None:
    """Raise if the score of any image, labelled or not, is not a finite number.

    Raises:
        DataError: There are such scores; the message names the images.
    """
    invalid = [row.key for row in scores.rows if row.score is not None and not math.isfinite(row.score)]
    if invalid:
        named = ", ".join(invalid[:_MAX_NAMED]) + ", ..." * (len(invalid) > _MAX_NAMED)
        raise DataError(
            f"{len(invalid)} scores are not finite numbers: {named}.",
            "Score the images again. If that does not help, train the model again.",
        )


def _set_notes(scores: ScoreSet, labelled: int) -> list[str]:
    """Return remarks about the set as a whole."""
    notes = []
    scored = sum(row.score is not None for row in scores.rows)
    if not labelled:
        notes.append("No image has a label, so metrics cannot be computed.")
    elif labelled < scored:
        notes.append(f"Metrics use only the {labelled} of {scored} images that have a label.")
    if scored < len(scores.rows):
        notes.append(f"{len(scores.rows) - scored} of {len(scores.rows)} images could not be scored.")
    if scores.calibration and scored:
        values = [row.score for row in scores.rows if row.score is not None]
        if scores.calibration.threshold >= max(values):
            notes.append("The threshold is not below any score, so no image is rejected.")
        elif scores.calibration.threshold < min(values):
            notes.append("The threshold is below every score, so every image is rejected.")
        own = sum(row.threshold not in (None, scores.calibration.threshold) for row in scores.rows)
        if own:
            notes.append(f"{own} images were judged by the threshold of their category; metrics use that of all.")
    notes += doubtful_label_notes(row.label for row in scores.rows)
    if not scores.manifest.get("complete", True):
        notes.append("Scoring was interrupted: this report covers the images scored before that.")
    return notes


def _interval_notes(image: ImageMetrics) -> list[str]:
    """Return remarks about the confidence intervals."""
    if "auroc" not in image.intervals and (image.auroc is not None or not image.intervals):
        return [
            "Only shares of images have confidence intervals: others need at least two good and two defective images."
        ]
    if any(interval.low == interval.high for interval in image.intervals.values()):
        return ["A confidence interval with equal ends does not mean certainty: test more images to get a real one."]
    return []


def _split_by_label(values: list[float], labels: list[str]) -> tuple[list[float], list[float]]:
    """Return the scores of the good images and the scores of the defective images."""
    rows = list(zip(values, labels, strict=True))
    return [value for value, label in rows if label == GOOD], [value for value, label in rows if label != GOOD]


def _curves(values: list[float], labels: list[str]) -> dict[str, Curve]:
    defective = [label != GOOD for label in labels]
    if all(defective) or not any(defective):
        return {}
    return {"roc": roc_curve(values, defective), "pr": precision_recall_curve(values, defective)}


def _missing_metric_notes(metrics: ImageMetrics) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in metrics.missing.items():
        by_reason.setdefault(reason, []).append(name.replace("_", " "))
    return [f"No {', '.join(names)}: {reason}." for reason, names in by_reason.items()]


def outcome(row: ScoredImage) -> str:
    """Return the outcome of an image: missed, false alarm, caught, passed, flagged, unflagged, unjudged or error."""
    if row.verdict is Verdict.ERROR:
        return "error"
    if row.verdict is Verdict.UNCALIBRATED:
        return "unjudged"
    alarm = row.verdict is Verdict.REJECT
    if row.label is None:
        return "flagged" if alarm else "unflagged"
    if row.label == GOOD:
        return "false alarm" if alarm else "passed"
    return "caught" if alarm else "missed"
