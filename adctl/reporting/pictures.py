"""Small pictures for reports: original, anomaly map and overlay of each image, with one image in memory at a time."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from adctl.data.images import read_mask, resize
from adctl.data.multichannel import read_pixels, to_display_image
from adctl.errors import ImageError
from adctl.records import Box
from adctl.scoring.heatmaps import ColourScale, colourise, overlay, upsample

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from numpy.typing import NDArray

    from adctl.records import ScoredImage
    from adctl.scoring.score_set import ScoreSet

    Rgb = NDArray[np.uint8]
    Reconstructor = Callable[[Rgb], Rgb]

_SIDE = 200
_GAP = 4
_DARK = (11, 13, 16)
_MAX_BYTES = 13_000
"""Largest size of a JPEG, so that a page with 1000 of them (as text a third larger) and Plotly is below 25 MB."""

_QUALITIES = (82, 70, 55, 40, 25, 10)


def pictures(
    scores: ScoreSet, rows: Collection[int], reconstruct: Reconstructor | None = None
) -> Iterator[tuple[int, str]]:
    """Yield row number and picture (a data URI) of each row whose image can be read, rows with a map first.

    Args:
        scores: Scored set.
        rows: Row numbers.
        reconstruct: Function from an image [H,W,3] to its reconstruction; None shows no reconstruction.
    """
    for index, tiles in strips(scores, rows, _SIDE, reconstruct):
        yield index, _data_uri(tiles)


def strips(
    scores: ScoreSet, rows: Collection[int], side: int, reconstruct: Reconstructor | None = None
) -> Iterator[tuple[int, list[Rgb]]]:
    """Yield row number and tiles of each row: original, reconstruction, anomaly map and overlay, as far as they exist.

    Args:
        scores: Scored set.
        rows: Row numbers.
        side: Longer side of a tile in pixels.
        reconstruct: Function from an image [H,W,3] to its reconstruction; None shows no reconstruction.
    """
    remaining = set(rows)
    scale = _scale(scores)
    for index, anomaly_map in scores.maps():
        if index in remaining:
            remaining.remove(index)
            if tiles := _tiles(scores, index, anomaly_map, scale, side, reconstruct):
                yield index, tiles
    for index in sorted(remaining):
        if tiles := _tiles(scores, index, None, scale, side, reconstruct):
            yield index, tiles


def _scale(scores: ScoreSet) -> ColourScale:
    """Return the colour scale for all pictures; without calibration it is computed from the maps."""
    if scores.calibration:
        return ColourScale.from_calibration(scores.calibration)
    scales = [ColourScale.from_values(anomaly_map) for _, anomaly_map in scores.maps()]
    if not scales:
        return ColourScale(0, 1)
    return ColourScale(float(np.median([each.low for each in scales])), max(each.high for each in scales))


def _tiles(
    scores: ScoreSet,
    index: int,
    anomaly_map: NDArray[np.float32] | None,
    scale: ColourScale,
    side: int,
    reconstruct: Reconstructor | None,
) -> list[Rgb]:
    """Return original, reconstruction (if wanted), map and overlay (if there is a map); empty for unreadable images."""
    row, calibration = scores.rows[index], scores.calibration
    try:
        image = to_display_image(read_pixels(Path(row.path), scores.channels, bit_depth=scores.bit_depth))
    except ImageError:
        return []
    factor = side / max(image.shape[:2])
    height, width = max(1, round(image.shape[0] * factor)), max(1, round(image.shape[1] * factor))
    tiles = [resize(image, height, width)]
    if reconstruct is not None:
        tiles.append(resize(reconstruct(image), height, width))
    if anomaly_map is None:
        return tiles
    heatmap = overlay(
        tiles[0],
        anomaly_map,
        scale,
        boxes=[_shrunk(box, factor) for box in row.boxes],
        contour_at=calibration.pixel_threshold if calibration else None,
        truth=_truth(row, image.shape[:2], height, width),
    )
    return [*tiles, colourise(scale(upsample(anomaly_map, height, width))), heatmap]


def _truth(row: ScoredImage, shape: tuple[int, ...], height: int, width: int) -> NDArray[np.bool_] | None:
    """Return the mask at picture size, with even the smallest defect visible; None without a mask of the right size."""
    if row.mask is None:
        return None
    try:
        mask = read_mask(Path(row.mask))
    except ImageError:
        return None
    if mask.shape != shape:
        return None
    covered = resize(mask[..., None].astype(np.uint8) * 255, height, width)[..., 0]
    return np.asarray(covered > 0)


def _shrunk(box: Box, factor: float) -> Box:
    width, height = max(2, round(box.width * factor)), max(2, round(box.height * factor))
    return Box(round(box.x * factor), round(box.y * factor), width, height, box.peak)


def joined(tiles: list[Rgb]) -> Rgb:
    """Join tiles of the same height side by side."""
    gap = np.full((len(tiles[0]), _GAP, 3), _DARK, np.uint8)
    return np.hstack([part for tile in tiles for part in (tile, gap)][:-1])


def as_jpeg(picture: Rgb, quality: int = 90) -> bytes:
    """Encode a picture as a JPEG file."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def _data_uri(tiles: list[Rgb]) -> str:
    strip = joined(tiles)
    for quality in _QUALITIES:
        data = as_jpeg(strip, quality)
        if len(data) <= _MAX_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
