"""Heatmaps of the same image from several models: the original, and one overlay per model with its own colour scale."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adctl.data.images import mask_for, read_image, resize
from adctl.errors import DataError, ImageError
from adctl.records import Box, Sample
from adctl.scoring.heatmaps import ColourScale, overlay

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from adctl.evaluation.match_images import SharedScores
    from adctl.records import ScoredImage

    Rgb = NDArray[np.uint8]
    Map = NDArray[np.float32]


@dataclass(frozen=True)
class Views:
    """Pictures of one image.

    Attributes:
        index: Number of the image among the shared images.
        original: Original image [H,W,3].
        overlays: Image [H,W,3] with the heatmap of each set; None if the set has no map of this image.
    """

    index: int
    original: Rgb
    overlays: tuple[Rgb | None, ...]


def views(sets: Sequence[SharedScores], images: Sequence[int], side: int) -> Iterator[Views]:
    """Yield the pictures of each image that can be read, in the given order.

    Args:
        sets: Scored sets, reduced to the same images.
        images: Numbers of the images; the maps of all of them are in memory at once.
        side: Longer side of each picture in pixels.
    """
    maps = [dict(scores.maps(images)) for scores in sets]
    scales = [_scale(scores, set_maps) for scores, set_maps in zip(sets, maps, strict=True)]
    for index in images:
        try:
            image = read_image(Path(sets[0].rows[index].path), bit_depth=sets[0].bit_depth)
        except ImageError:
            continue
        factor = side / max(image.shape[:2])
        small = resize(image, max(1, round(image.shape[0] * factor)), max(1, round(image.shape[1] * factor)))
        truth = _truth(sets[0].rows[index], image, small)
        overlays = [
            _overlay(scores, index, set_maps.get(index), scale, small, factor, truth)
            for scores, set_maps, scale in zip(sets, maps, scales, strict=True)
        ]
        yield Views(index, small, tuple(overlays))


def _scale(scores: SharedScores, maps: dict[int, Map]) -> ColourScale:
    """Return the colour scale of a set; without calibration it is computed from the maps."""
    if scores.calibration:
        return ColourScale.from_calibration(scores.calibration)
    if not maps:
        return ColourScale(0, 1)
    return ColourScale.from_values(np.concatenate([values.ravel() for values in maps.values()]))


def _overlay(
    scores: SharedScores,
    index: int,
    anomaly_map: Map | None,
    scale: ColourScale,
    small: Rgb,
    factor: float,
    truth: NDArray[np.bool_] | None,
) -> Rgb | None:
    if anomaly_map is None:
        return None
    contour = scores.calibration.pixel_threshold if scores.calibration else None
    boxes = [_shrunk(box, factor) for box in scores.rows[index].boxes]
    return overlay(small, anomaly_map, scale, boxes=boxes, contour_at=contour, truth=truth)


def _truth(row: ScoredImage, image: Rgb, small: Rgb) -> NDArray[np.bool_] | None:
    """Return the mask at picture size, with even the smallest defect visible; None without a mask of the right size."""
    if row.mask is None:
        return None
    sample = Sample(Path(row.path), row.key, row.label, Path(row.mask))
    try:
        mask = mask_for(sample, image.shape[1], image.shape[0])
    except DataError:
        return None
    if mask is None:
        return None
    return np.asarray(resize(mask[..., None].astype(np.uint8) * 255, *small.shape[:2])[..., 0] > 0)


def _shrunk(box: Box, factor: float) -> Box:
    width, height = max(2, round(box.width * factor)), max(2, round(box.height * factor))
    return Box(round(box.x * factor), round(box.y * factor), width, height, box.peak)
