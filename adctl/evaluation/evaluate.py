"""All metrics of a scored set: of its images, by defect type, and of its pixels; with intervals where asked for.

Knows scores and metrics, nothing of pages. `pixels.py` measures the maps.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
_NAMED = 5


@dataclass(frozen=True)
class ScoreBins:
    """Scores counted in bins of equal width, the same for each class.

    Attributes:
        low: Where the first bin begins: the lowest score.
        high: Where the last one ends: the highest.
        counts: By class (`good`, `defective`, `no label`), those that there are.
    """

    low: float
    high: float
    counts: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Evaluation:
    """What a scored set is worth.

    Attributes:
        images: Rows in the set.
        verdicts: Images by verdict.
        image: Image metrics over the labelled images.
        by_defect: The same for each defect type against all good images.
        pixel: Pixel metrics, also by defect type and size; None where there are no maps or no masks.
        curves: `roc`, `pr`, and for pixels `pixel_roc`, `pixel_pr`, `pixel_pro`, as far as they exist.
        notes: What is missing and why, in sentences.
        distributions: How the scores of the good images and of each defect type are distributed.
        effect_size: How far the scores of defective images lie from those of good ones; None without either.
        resampling: What the confidence intervals rest on; None where none were asked for.
        bins: Scores of each class counted; None where there are none.
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


def evaluate(scores: ScoreSet, resampling: Resampling | None = None, *, pixel_intervals: bool = True) -> Evaluation:
    """Compute every metric that the scored set allows.

    Args:
        scores: Read back from disk.
        resampling: For confidence intervals; None leaves them out.
        pixel_intervals: Whether pixel metrics get theirs too, for which every map is read again.

    Raises:
        DataError: Scores or maps are damaged, or not finite numbers; names the images.
    """
    _check_scores(scores)
    labelled = [
        (row.score, row.label, row.key) for row in scores.rows if row.score is not None and row.label is not None
    ]
    values, labels = [score for score, _, _ in labelled], [label for _, label, _ in labelled]
    names = [key for _, _, key in labelled]
    threshold = scores.calibration.threshold if scores.calibration else None
    image = image_metrics(values, [label != GOOD for label in labels], threshold, resampling=resampling, names=names)
    pixels = measure_pixels(scores, resampling if pixel_intervals else None)
    notes = [*_set_notes(scores, len(labelled)), *(_reasons(image) if labelled else []), *pixels.notes]
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
        effect_size=effect_size(*_parted(values, labels)),
        resampling=resampling,
        bins=_bins(scores),
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
            places = [min(_BINS - 1, int(_BINS * (value - low) / ((high - low) or 1))) for value in classes[kind]]
            counts[kind] = tuple(places.count(place) for place in range(_BINS))
    return ScoreBins(low, high, counts)


def _check_scores(scores: ScoreSet) -> None:
    """Refuse scores that are not numbers, of unlabelled images too: nothing can be ordered by them.

    Raises:
        DataError: Names the images.
    """
    odd = [row.key for row in scores.rows if row.score is not None and not math.isfinite(row.score)]
    if odd:
        raise DataError(
            f"{len(odd)} scores are not finite numbers: {', '.join(odd[:_NAMED])}{', ...' * (len(odd) > _NAMED)}.",
            "Score again, or train again.",
        )


def _set_notes(scores: ScoreSet, labelled: int) -> list[str]:
    """What to know of the set as a whole."""
    notes = []
    scored = sum(row.score is not None for row in scores.rows)
    if not labelled:
        notes.append("No image has a label, so nothing can be said of how good the verdicts are.")
    elif labelled < scored:
        notes.append(f"Metrics rest on the {labelled} of {scored} images that have a label.")
    if scored < len(scores.rows):
        notes.append(f"{len(scores.rows) - scored} of {len(scores.rows)} images could not be scored.")
    if scores.calibration and scored:
        values = [row.score for row in scores.rows if row.score is not None]
        if scores.calibration.threshold >= max(values):
            notes.append("The threshold lies above every score: no image is called anomalous.")
        elif scores.calibration.threshold < min(values):
            notes.append("The threshold lies below every score: every image is called anomalous.")
    if not scores.manifest.get("complete", True):
        notes.append("Scoring was interrupted: these are the images scored until then.")
    return notes


def _interval_notes(image: ImageMetrics) -> list[str]:
    """What to know of the confidence intervals."""
    if not image.intervals:
        return ["No confidence intervals: they need two images of each kind at least."]
    if any(interval.low == interval.high for interval in image.intervals.values()):
        return ["An interval without width does not mean certainty: drawing these images again changes nothing there."]
    return []


def _parted(values: list[float], labels: list[str]) -> tuple[list[float], list[float]]:
    """Scores of good and of defective images."""
    rows = list(zip(values, labels, strict=True))
    return [value for value, label in rows if label == GOOD], [value for value, label in rows if label != GOOD]


def _curves(values: list[float], labels: list[str]) -> dict[str, Curve]:
    defective = [label != GOOD for label in labels]
    if all(defective) or not any(defective):
        return {}
    return {"roc": roc_curve(values, defective), "pr": precision_recall_curve(values, defective)}


def _reasons(metrics: ImageMetrics) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in metrics.missing.items():
        by_reason.setdefault(reason, []).append(name.replace("_", " "))
    return [f"No {', '.join(names)}: {reason}." for reason, names in by_reason.items()]


def outcome(row: ScoredImage) -> str:
    """What became of an image: missed, false alarm, caught, passed, flagged, unflagged, unjudged or error."""
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
