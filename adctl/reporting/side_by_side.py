"""One image as several models see it: the original, and an overlay a model on that model's own colour scale.

Knows shared scored sets and arrays, nothing of pages or animations.
"""

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
    """What there is to see of one image.

    Attributes:
        index: Among the shared images.
        original: Array [H,W,3].
        overlays: Likewise, one a set; None where it kept no map.
    """

    index: int
    original: Rgb
    overlays: tuple[Rgb | None, ...]


def views(sets: Sequence[SharedScores], wanted: Sequence[int], side: int) -> Iterator[Views]:
    """The views of those images that are still there, in the order wanted.

    Args:
        sets: The shared scored sets.
        wanted: Indices of images; the maps of all of them are in memory at once.
        side: Longer side of each picture, pixels.
    """
    maps = [dict(one.maps(wanted)) for one in sets]
    scales = [_scale(one, found) for one, found in zip(sets, maps, strict=True)]
    for index in wanted:
        try:
            image = read_image(Path(sets[0].rows[index].path), bit_depth=sets[0].bit_depth)
        except ImageError:
            continue
        factor = side / max(image.shape[:2])
        small = resize(image, max(1, round(image.shape[0] * factor)), max(1, round(image.shape[1] * factor)))
        truth = _truth(sets[0].rows[index], image, small)
        overlays = [
            _overlay(one, index, found.get(index), scale, small, factor, truth)
            for one, found, scale in zip(sets, maps, scales, strict=True)
        ]
        yield Views(index, small, tuple(overlays))


def _scale(scores: SharedScores, maps: dict[int, Map]) -> ColourScale:
    """That of the set's other pictures; without a calibration it spans the values there are."""
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
    """The mask in the picture's size, the smallest defect still visible; None where there is no fitting mask."""
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
