"""Small pictures for the page: original, map and overlay in one JPEG, as a data URI.

One image is in memory at a time. Knows nothing of the page they go on.
"""

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
    Rebuilder = Callable[[Rgb], Rgb]

_SIDE = 200
_GAP = 4
_DARK = (11, 13, 16)
_MOST_BYTES = 13_000
"""Of one JPEG: a thousand of them, a third larger as text, and Plotly stay below 25 MB."""

_QUALITIES = (82, 70, 55, 40, 25, 10)


def pictures(scores: ScoreSet, wanted: Collection[int], rebuild: Rebuilder | None = None) -> Iterator[tuple[int, str]]:
    """Row index and picture of each wanted row whose image is still there, those with a map first.

    Args:
        scores: The scored set.
        wanted: Indices of rows.
        rebuild: From an image [H,W,3] to what an autoencoder makes of it; None leaves that out.
    """
    for index, tiles in strips(scores, wanted, _SIDE, rebuild):
        yield index, _data_uri(tiles)


def strips(
    scores: ScoreSet, wanted: Collection[int], side: int, rebuild: Rebuilder | None = None
) -> Iterator[tuple[int, list[Rgb]]]:
    """Row index and tiles of one size of each wanted row: original, reconstruction, map and overlay as there are.

    Args:
        scores: The scored set.
        wanted: Indices of rows.
        side: The longer one of a tile, pixels.
        rebuild: As for `pictures`.
    """
    chosen, seen = set(wanted), set()
    scale = _scale(scores)
    for index, anomaly_map in scores.maps():
        if index in chosen:
            seen.add(index)
            if tiles := _tiles(scores, index, anomaly_map, scale, side, rebuild):
                yield index, tiles
    for index in sorted(chosen - seen):
        if tiles := _tiles(scores, index, None, scale, side, rebuild):
            yield index, tiles


def _scale(scores: ScoreSet) -> ColourScale:
    """One scale for all pictures; without a calibration it spans the values there are."""
    if scores.calibration:
        return ColourScale.from_calibration(scores.calibration)
    scales = [ColourScale.from_values(anomaly_map) for _, anomaly_map in scores.maps()]
    if not scales:
        return ColourScale(0, 1)
    return ColourScale(float(np.median([one.low for one in scales])), max(one.high for one in scales))


def _tiles(
    scores: ScoreSet,
    index: int,
    anomaly_map: NDArray[np.float32] | None,
    scale: ColourScale,
    side: int,
    rebuild: Rebuilder | None,
) -> list[Rgb]:
    """Original, reconstruction where wanted, and with a map that map and the overlay; none where it is unreadable."""
    row, calibration = scores.rows[index], scores.calibration
    try:
        image = to_display_image(read_pixels(Path(row.path), scores.channels, bit_depth=scores.bit_depth))
    except ImageError:
        return []
    factor = side / max(image.shape[:2])
    height, width = max(1, round(image.shape[0] * factor)), max(1, round(image.shape[1] * factor))
    first = [resize(image, height, width)]
    if rebuild is not None:
        first.append(resize(rebuild(image), height, width))
    if anomaly_map is None:
        return first
    laid_over = overlay(
        first[0],
        anomaly_map,
        scale,
        boxes=[_shrunk(box, factor) for box in row.boxes],
        contour_at=calibration.pixel_threshold if calibration else None,
        truth=_truth(row, image.shape[:2], height, width),
    )
    return [*first, colourise(scale(upsample(anomaly_map, height, width))), laid_over]


def _truth(row: ScoredImage, shape: tuple[int, ...], height: int, width: int) -> NDArray[np.bool_] | None:
    """The mask in the picture's size, the smallest defect still visible; None where there is no fitting mask."""
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
    """Tiles of one height beside each other."""
    gap = np.full((len(tiles[0]), _GAP, 3), _DARK, np.uint8)
    return np.hstack([part for tile in tiles for part in (tile, gap)][:-1])


def as_jpeg(picture: Rgb, quality: int = 90) -> bytes:
    """A picture as a JPEG file."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def _data_uri(tiles: list[Rgb]) -> str:
    strip = joined(tiles)
    for quality in _QUALITIES:
        data = as_jpeg(strip, quality)
        if len(data) <= _MOST_BYTES:
            break
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
