"""Pixel metrics of a scored set. Anomaly maps and masks are read one at a time.

Maps are enlarged once, to the size of the original image; masks keep their size. Images with a longer side above 1024
pixels are evaluated at 1024 pixels, and their masks are reduced too; so are all images if a size is given. Sets of up
to 2^24 (about 16.8 million) pixels are held in memory and evaluated exactly; larger sets are evaluated with histograms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adctl.data.images import resize
from adctl.data.masks import interpret_mask, seems_inverted
from adctl.errors import DataError, ImageError
from adctl.image_sizes import both_sides
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
    PixelSize = int | tuple[int, int]

_LONGEST = 1024
_MAX_EXACT_PIXELS = 2**24
_MAX_NAMED = 5
_HALF = 128


@dataclass(frozen=True)
class MeasuredPixels:
    """Pixel metrics and curves of a scored set.

    Attributes:
        metrics: Pixel metrics, or None without anomaly maps or masks.
        curves: Curves `roc`, `pr` and `pro`, as far as they exist.
        notes: Full sentences that say which results are missing and why.
        samples: Per-image data to compare these maps with other maps of the same images; None without resampling.
        resolution: Size at which pixels were evaluated, for people; empty without pixel metrics.
    """

    metrics: PixelMetrics | None = None
    curves: dict[str, Curve] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    samples: PixelSamples | None = None
    resolution: str = ""


def measure_pixels(
    scores: ScoreSet, resampling: Resampling | None = None, size: PixelSize | None = None
) -> MeasuredPixels:
    """Compute pixel metrics.

    Args:
        scores: Scored set, read from disk.
        resampling: Bootstrap settings for confidence intervals; None computes no intervals.
        size: Size at which all maps and masks are evaluated, pixels; None takes that of each image, up to 1024 pixels.

    Raises:
        DataError: A map is damaged or holds values that are not finite numbers.
    """
    if not any(row.label not in (None, GOOD) for row in scores.rows):
        return MeasuredPixels()
    if not any(row.mask for row in scores.rows):
        return MeasuredPixels(notes=("No pixel metrics: the images have no ground-truth masks.",))
    if not scores.has_maps:
        return MeasuredPixels(notes=("No pixel metrics: anomaly maps were not saved; run adctl score with --maps.",))
    problems: list[str] = []
    doubts: list[str] = []
    meter = _meter(scores, size)
    _add_maps(meter, scores, size, problems, doubts)
    metrics = meter.result()
    samples = None
    if resampling and metrics.auroc is not None:
        samples = PixelSamples(meter)
        _add_maps(samples, scores, size, [], [])
        metrics = samples.with_intervals(metrics, resampling)
    notes = (*_shrinking_note(scores, size), *_doubt_note(doubts), *_shorten(problems))
    return MeasuredPixels(metrics, meter.curves(), notes, samples, _resolution(scores, size))


def _resolution(scores: ScoreSet, size: PixelSize | None) -> str:
    sizes = {_measured_size(row.height, row.width, size) for row in scores.rows if row.height and row.width}
    if len(sizes) == 1:
        height, width = sizes.pop()
        return f"at {height} x {width} pixels"
    return f"at the size of each image, up to {_LONGEST} pixels"


def _measured_size(height: int, width: int, size: PixelSize | None) -> tuple[int, int]:
    """Return the height and width at which the pixels of an image are evaluated."""
    if size is not None:
        return both_sides(size)
    scale = min(1.0, _LONGEST / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _meter(scores: ScoreSet, size: PixelSize | None) -> Meter:
    """Return an exact meter if all pixels fit into memory, or else a meter that uses histograms."""
    threshold = scores.calibration.pixel_threshold if scores.calibration else None
    if sum(_pixels(row, size) for row in scores.rows) <= _MAX_EXACT_PIXELS:
        return ExactMeter(threshold)
    low, high = np.inf, -np.inf
    for _, anomaly_map in _maps(scores):  # enlarging a map keeps its values between its minimum and its maximum
        low, high = min(low, float(anomaly_map.min())), max(high, float(anomaly_map.max()))
    return HistogramMeter(low, high, threshold)


def _pixels(row: ScoredImage, size: PixelSize | None) -> int:
    if row.label is None or row.width is None or row.height is None:
        return 0
    height, width = _measured_size(row.height, row.width, size)
    return height * width


def _add_maps(
    accumulator: PixelAccumulator, scores: ScoreSet, size: PixelSize | None, problems: list[str], doubts: list[str]
) -> None:
    """Add every map that can be evaluated to the accumulator.

    Args:
        accumulator: Receiver of maps and masks.
        scores: Scored set.
        size: Size of the evaluation; see `measure_pixels`.
        problems: List to which a sentence on each map that cannot be evaluated is appended.
        doubts: List to which a clause on each mask that was not clear is appended.
    """
    for row, anomaly_map in _maps(scores):
        if not _pixels(row, size) or row.height is None or row.width is None:
            continue
        mask = None if row.label == GOOD else _mask_of(row, doubts)
        if isinstance(mask, str):
            problems.append(mask)
            continue
        height, width = _measured_size(row.height, row.width, size)
        truth = None if mask is None else _resized(mask, height, width)
        accumulator.add(upsample(anomaly_map, height, width), truth, row.label)


def _maps(scores: ScoreSet) -> Iterator[tuple[ScoredImage, Map]]:
    for index, anomaly_map in scores.maps():
        if not np.isfinite(anomaly_map).all():
            raise DataError(
                f"The map of {scores.rows[index].key} holds values that are not finite numbers.",
                "Score the images again. If that does not help, train the model again.",
            )
        yield scores.rows[index], anomaly_map


def _mask_of(row: ScoredImage, doubts: list[str]) -> Mask | str:
    """Return the mask, or a sentence that says why the image cannot be evaluated."""
    if row.mask is None:
        return f"{row.key} has no mask and is left out of the pixel metrics."
    try:
        found = interpret_mask(Path(row.mask))
    except ImageError as error:
        return f"{row.key} is left out of the pixel metrics: {error.message}"
    mask = found.defect
    if mask.shape != (row.height, row.width):
        return (
            f"{row.key} is left out of the pixel metrics: its mask is {mask.shape[1]} x {mask.shape[0]} pixels, "
            f"the image {row.width} x {row.height}."
        )
    doubt = found.doubt or _odd_extent(mask)
    if doubt:
        doubts.append(f"{row.mask}: {doubt}")
    return mask


def _odd_extent(mask: Mask) -> str | None:
    """Return a clause on a mask without a defect, or one that seems to be inverted; None for others."""
    if not mask.any():
        return "no pixel is marked, though the image counts as defective"
    return "most of it and of its border is marked; it seems to be inverted" if seems_inverted(mask) else None


def _resized(mask: Mask, height: int, width: int) -> Mask:
    """Return the mask at another size; a pixel is defective if at least half of its area is defective."""
    covered = resize(mask[..., None].astype(np.uint8) * 255, height, width)[..., 0]
    return np.asarray(covered >= _HALF)


def _shrinking_note(scores: ScoreSet, size: PixelSize | None) -> list[str]:
    if size is not None:
        return []
    larger = sum(max(row.width or 0, row.height or 0) > _LONGEST for row in scores.rows)
    if not larger:
        return []
    return [f"Images larger than {_LONGEST} pixels: {larger}. Their pixel metrics are computed at {_LONGEST} pixels."]


def _doubt_note(doubts: list[str]) -> list[str]:
    if not doubts:
        return []
    advice = "Save masks as PNG, with 255 for the defect and 0 elsewhere."
    return [f"Masks that were not clear: {len(doubts)}, such as {doubts[0]}. {advice}"]


def _shorten(problems: list[str]) -> list[str]:
    more = len(problems) - _MAX_NAMED
    rest = [f"Other images left out of the pixel metrics for similar reasons: {more}."] if more > 0 else []
    return problems[:_MAX_NAMED] + rest
