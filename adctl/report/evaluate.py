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
from adctl.errors import ImageError
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
    notes: list[str] = []
    labelled = [row for row in scores.rows if row.label is not None and row.score is not None]
    threshold = scores.calibration.threshold if scores.calibration else None
    values = [row.score for row in labelled if row.score is not None]
    labels = [row.label or "" for row in labelled]
    defective = [label != GOOD for label in labels]
    if not labelled:
        notes.append("No image has a label, so nothing can be said of how good the verdicts are.")
    elif len(labelled) < sum(row.score is not None for row in scores.rows):
        notes.append(f"Metrics rest on the {len(labelled)} images with a label.")
    if not scores.manifest.get("complete", True):
        notes.append("Scoring was interrupted: these are the images scored until then.")
    image = image_metrics(values, defective, threshold)
    notes += _reasons(image) if labelled else []
    curves: dict[str, Curve] = {}
    if any(defective) and not all(defective):
        curves = {"roc": roc_curve(values, defective), "pr": precision_recall_curve(values, defective)}
    meter = _measure_pixels(scores, notes)
    if meter is not None:
        curves |= {f"pixel_{name}": curve for name, curve in meter.curves().items()}
    pixel_threshold = scores.calibration.pixel_threshold if scores.calibration else None
    return Evaluation(
        images=len(scores.rows),
        verdicts=dict(Counter(str(row.verdict) for row in scores.rows)),
        image=image,
        by_defect=image_metrics_by_defect(values, labels, threshold),
        pixel=meter.result(pixel_threshold) if meter is not None else None,
        curves=curves,
        notes=tuple(notes),
    )


def _reasons(metrics: ImageMetrics) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in metrics.missing.items():
        by_reason.setdefault(reason, []).append(name.replace("_", " "))
    return [f"No {', '.join(names)}: {reason}." for reason, names in by_reason.items()]


def _measure_pixels(scores: ScoreSet, notes: list[str]) -> PixelMeter | None:
    """Two passes over the maps: their range first, since enlarging a map never leaves it."""
    if not any(row.mask for row in scores.rows):
        return None
    if not scores.has_maps:
        notes.append("No pixel metrics: the maps were not kept; score again without --no-maps.")
        return None
    low, high = np.inf, -np.inf
    for _, anomaly_map in scores.maps():
        low, high = min(low, float(anomaly_map.min())), max(high, float(anomaly_map.max()))
    meter = PixelMeter(low, high)
    skipped: list[str] = []
    for index, anomaly_map in scores.maps():
        row = scores.rows[index]
        problem = _add(meter, row, anomaly_map)
        if problem:
            skipped.append(problem)
    notes += skipped[:5]
    if len(skipped) > 5:  # noqa: PLR2004 - enough to see what is wrong
        notes.append(f"{len(skipped) - 5} more images are left out of the pixel metrics for such reasons.")
    return meter


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
    if mask.shape != (height, width):
        mask = resize(np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2), height, width)[..., 0] > 127  # noqa: PLR2004 - half covered
    meter.add(upsample(anomaly_map, height, width), mask, row.label)
    return None


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
    alarm = row.verdict is Verdict.ANOMALOUS
    if row.label is None:
        return "flagged" if alarm else "unflagged"
    if row.label == GOOD:
        return "false alarm" if alarm else "passed"
    return "caught" if alarm else "missed"
