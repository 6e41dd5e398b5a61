"""All metrics of a scored set, with flat memory: maps and masks are met one at a time.

Pixel metrics are taken at the size of the original image (at most 1024 pixels on the longer side): the map is
enlarged once, the mask stays as it was drawn. Knows scores and metrics, nothing of pages.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adctl.data.images import read_mask, resize
from adctl.errors import DataError, ImageError
from adctl.heatmaps import upsample
from adctl.metrics import (
    Curve,
    ImageMetrics,
    PixelMeter,
    PixelMetrics,
    image_metrics,
    image_metrics_by_defect,
    precision_recall_curve,
    roc_curve,
)
from adctl.records import GOOD, Verdict

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adctl.records import ScoredImage
    from adctl.scores import ScoreSet

_LONGEST = 1024
_NAMED = 5
_HALF = 128


@dataclass(frozen=True)
class Evaluation:
    """What a scored set is worth.

    Attributes:
        images: Rows in the set.
        verdicts: Images by verdict.
        image: Image metrics over the labelled images.
        by_defect: The same for each defect type against all good images.
        pixel: Pixel metrics, or None where there are no maps or no masks.
        curves: `roc`, `pr`, and for pixels `pixel_roc`, `pixel_pr`, `pixel_pro`, as far as they exist.
        notes: What is missing and why, in sentences.
    """

    images: int
    verdicts: dict[str, int]
    image: ImageMetrics
    by_defect: dict[str, ImageMetrics]
    pixel: PixelMetrics | None
    curves: dict[str, Curve]
    notes: tuple[str, ...]


def evaluate(scores: ScoreSet) -> Evaluation:
    """Compute every metric that the scored set allows.

    Args:
        scores: Read back from disk.

    Raises:
        DataError: Scores or maps are damaged.
    """
    calibration = scores.calibration
    labelled = [(row.score, row.label) for row in scores.rows if row.score is not None and row.label is not None]
    values, labels = [score for score, _ in labelled], [label for _, label in labelled]
    threshold = calibration.threshold if calibration else None
    image = image_metrics(values, [label != GOOD for label in labels], threshold)
    notes = _set_notes(scores, len(labelled)) + (_reasons(image) if labelled else [])
    meter = _measure_pixels(scores, notes)
    return Evaluation(
        images=len(scores.rows),
        verdicts=dict(Counter(str(row.verdict) for row in scores.rows)),
        image=image,
        by_defect=image_metrics_by_defect(values, labels, threshold),
        pixel=meter.result(calibration.pixel_threshold if calibration else None) if meter is not None else None,
        curves=_curves(values, labels, meter),
        notes=tuple(notes),
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
    if not scores.manifest.get("complete", True):
        notes.append("Scoring was interrupted: these are the images scored until then.")
    return notes


def _curves(values: list[float], labels: list[str], meter: PixelMeter | None) -> dict[str, Curve]:
    defective = [label != GOOD for label in labels]
    curves: dict[str, Curve] = {}
    if any(defective) and not all(defective):
        curves = {"roc": roc_curve(values, defective), "pr": precision_recall_curve(values, defective)}
    if meter is not None:
        curves |= {f"pixel_{name}": curve for name, curve in meter.curves().items()}
    return curves


def _reasons(metrics: ImageMetrics) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in metrics.missing.items():
        by_reason.setdefault(reason, []).append(name.replace("_", " "))
    return [f"No {', '.join(names)}: {reason}." for reason, names in by_reason.items()]


def _measure_pixels(scores: ScoreSet, notes: list[str]) -> PixelMeter | None:
    """Two passes over the maps: their range first, since enlarging a map never leaves it."""
    if not any(row.label not in (None, GOOD) for row in scores.rows):
        return None
    if not any(row.mask for row in scores.rows):
        notes.append("No pixel metrics: there are no ground-truth masks.")
        return None
    if not scores.has_maps:
        notes.append("No pixel metrics: the maps were not kept; run score with --maps.")
        return None
    meter = PixelMeter(*_range(scores))
    skipped: list[str] = []
    shrunk = 0
    for index, anomaly_map in scores.maps():
        row = scores.rows[index]
        problem = _add(meter, row, anomaly_map)
        if problem:
            skipped.append(problem)
        shrunk += max(row.width or 0, row.height or 0) > _LONGEST
    if shrunk:
        notes.append(f"Pixels of {shrunk} larger images were measured at {_LONGEST} pixels on the longer side.")
    notes += skipped[:_NAMED]
    if len(skipped) > _NAMED:
        notes.append(f"{len(skipped) - _NAMED} more images are left out of the pixel metrics for such reasons.")
    return meter


def _range(scores: ScoreSet) -> tuple[float, float]:
    """Lowest and highest value of all maps."""
    low, high = np.inf, -np.inf
    for index, anomaly_map in scores.maps():
        if not np.isfinite(anomaly_map).all():
            raise DataError(
                f"The map of {scores.rows[index].key} holds values that are not finite numbers.",
                "Score again, or train again.",
            )
        low, high = min(low, float(anomaly_map.min())), max(high, float(anomaly_map.max()))
    return low, high


def _add(meter: PixelMeter, row: ScoredImage, anomaly_map: NDArray[np.float32]) -> str | None:
    """Measure one map; the reason where it cannot be."""
    if row.label is None or row.width is None or row.height is None:
        return None
    height, width = measured_size(row.height, row.width)
    if row.label == GOOD:
        meter.add(upsample(anomaly_map, height, width))
        return None
    if row.mask is None:
        return f"{row.key} has no mask and is left out of the pixel metrics."
    try:
        mask = read_mask(Path(row.mask))
    except ImageError as error:
        return f"{row.key} is left out of the pixel metrics: {error.message}"
    if mask.shape != (row.height, row.width):
        return (
            f"{row.key} is left out of the pixel metrics: its mask is {mask.shape[1]} x {mask.shape[0]} pixels, "
            f"the image {row.width} x {row.height}."
        )
    meter.add(upsample(anomaly_map, height, width), _shrunk(mask, height, width), row.label)
    return None


def _shrunk(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """The mask at another size: defect where at least half of a pixel's area is."""
    covered = resize(mask[..., None].astype(np.uint8) * 255, height, width)[..., 0]
    return np.asarray(covered >= _HALF)


def measured_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which pixels are measured."""
    scale = min(1.0, _LONGEST / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


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
