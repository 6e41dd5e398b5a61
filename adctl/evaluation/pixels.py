"""Pixel metrics of a scored set: maps and masks are met one at a time, at the size of the original image.

An image larger than 1024 pixels on the longer side is measured at that. The map is enlarged once, the mask stays as
it was drawn. Sets of up to 16 million pixels are kept and measured exactly, larger ones in histograms. Knows scores
and meters, nothing of pages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adctl.data.images import read_mask, resize
from adctl.errors import DataError, ImageError
from adctl.metrics.exact import ExactMeter
from adctl.metrics.pixel_bootstrap import PixelSamples
from adctl.metrics.streaming import HistogramMeter
from adctl.records import GOOD
from adctl.scoring.heatmaps import upsample

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from adctl.metrics.accumulator import PixelAccumulator
    from adctl.metrics.bootstrap import Resampling
    from adctl.metrics.curves import Curve
    from adctl.metrics.pixel import Meter, PixelMetrics
    from adctl.records import ScoredImage
    from adctl.scoring.score_set import ScoreSet

    Map = NDArray[np.float32]
    Mask = NDArray[np.bool_]

_LONGEST = 1024
_EXACT = 2**24
_NAMED = 5
_HALF = 128


@dataclass(frozen=True)
class MeasuredPixels:
    """What the maps of a scored set are worth.

    Attributes:
        metrics: None where there are no maps or no masks.
        curves: `roc`, `pr` and `pro`, as far as they exist.
        notes: What is missing and why, in sentences.
    """

    metrics: PixelMetrics | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    samples: PixelSamples | None = None
    """What comparing with other maps of the same images takes; None without resampling."""


def measure_pixels(scores: ScoreSet, resampling: Resampling | None = None) -> MeasuredPixels:
    """Compute pixel metrics.

    Args:
        scores: Read back from disk.
        resampling: For confidence intervals; None leaves them out.

    Raises:
        DataError: A map is damaged or holds values that are not finite numbers.
    """
    if not any(row.label not in (None, GOOD) for row in scores.rows):
        return MeasuredPixels()
    if not any(row.mask for row in scores.rows):
        return MeasuredPixels(notes=("No pixel metrics: there are no ground-truth masks.",))
    if not scores.has_maps:
        return MeasuredPixels(notes=("No pixel metrics: the maps were not kept; run score with --maps.",))
    problems: list[str] = []
    meter = _meter(scores)
    _gather(meter, scores, problems)
    metrics = meter.result()
    samples = None
    if resampling and metrics.auroc is not None:
        samples = PixelSamples(meter)
        _gather(samples, scores, [])
        metrics = samples.with_intervals(metrics, resampling)
    return MeasuredPixels(metrics, meter.curves(), (*_shrinking_note(scores), *_shortened(problems)), samples)


def measured_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which pixels are measured."""
    scale = min(1.0, _LONGEST / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _meter(scores: ScoreSet) -> Meter:
    """An exact one while all pixels fit."""
    threshold = scores.calibration.pixel_threshold if scores.calibration else None
    if sum(_pixels(row) for row in scores.rows) <= _EXACT:
        return ExactMeter(threshold)
    low, high = np.inf, -np.inf
    for _, anomaly_map in _maps(scores):  # enlarging a map never leaves its range
        low, high = min(low, float(anomaly_map.min())), max(high, float(anomaly_map.max()))
    return HistogramMeter(low, high, threshold)


def _pixels(row: ScoredImage) -> int:
    if row.label is None or row.width is None or row.height is None:
        return 0
    height, width = measured_size(row.height, row.width)
    return height * width


def _gather(gatherer: PixelAccumulator, scores: ScoreSet, problems: list[str]) -> None:
    """Let it take every map that can be measured; the others are named among the problems."""
    for row, anomaly_map in _maps(scores):
        if not _pixels(row) or row.height is None or row.width is None:
            continue
        mask = None if row.label == GOOD else _mask_of(row)
        if isinstance(mask, str):
            problems.append(mask)
            continue
        height, width = measured_size(row.height, row.width)
        truth = None if mask is None else _resized(mask, height, width)
        gatherer.add(upsample(anomaly_map, height, width), truth, row.label)


def _maps(scores: ScoreSet) -> Iterator[tuple[ScoredImage, Map]]:
    for index, anomaly_map in scores.maps():
        if not np.isfinite(anomaly_map).all():
            raise DataError(
                f"The map of {scores.rows[index].key} holds values that are not finite numbers.",
                "Score again, or train again.",
            )
        yield scores.rows[index], anomaly_map


def _mask_of(row: ScoredImage) -> Mask | str:
    """The mask, or why the image cannot be measured."""
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
    return mask


def _resized(mask: Mask, height: int, width: int) -> Mask:
    """The mask at another size: defect where at least half of a pixel's area is."""
    covered = resize(mask[..., None].astype(np.uint8) * 255, height, width)[..., 0]
    return np.asarray(covered >= _HALF)


def _shrinking_note(scores: ScoreSet) -> list[str]:
    larger = sum(max(row.width or 0, row.height or 0) > _LONGEST for row in scores.rows)
    if not larger:
        return []
    return [f"Pixels of {larger} larger images were measured at {_LONGEST} pixels on the longer side."]


def _shortened(problems: list[str]) -> list[str]:
    more = len(problems) - _NAMED
    rest = [f"{more} more images are left out of the pixel metrics for such reasons."] if more > 0 else []
    return problems[:_NAMED] + rest
