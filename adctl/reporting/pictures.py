"""Small pictures for reports: original, anomaly map and overlay of each image, with one image in memory at a time."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from adctl.data.images import resize
from adctl.data.masks import read_mask
from adctl.data.multichannel import read_pixels, to_display_image
from adctl.errors import ImageError
from adctl.scoring.colour_bar import ColourScale, colour_bar, colourise
from adctl.scoring.heatmaps import overlay, upsample

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from numpy.typing import NDArray

    from adctl.records import ScoredImage
    from adctl.scoring.score_set import ScoreSet

    Rgb = NDArray[np.uint8]
    Map = NDArray[np.float32]
    Explain = Callable[[Rgb, str | None], list[Rgb]]

_SIDE = 200
_GAP = 4
_MIN_BAR = 90
_GREY, _WHITE = 127, 255
_MAX_BYTES = 13_000
"""Largest size of a JPEG, so that a page with 1000 of them (as text a third larger) and Plotly is below 25 MB."""

LEGEND = (
    "Original, anomaly map, overlay. Tinted and outlined: regions above the pixel threshold. "
    "White dashes: ground truth. All images have the same colour scale."
)
_QUALITIES = (82, 70, 55, 40, 25, 10)


def pictures(
    scores: ScoreSet, rows: Collection[int], scale: ColourScale, explain: Explain | None = None
) -> Iterator[tuple[int, str]]:
    """Yield row number and picture (a data URI) of each row whose image can be read, rows with a map first.

    Args:
        scores: Scored set.
        rows: Row numbers.
        scale: Colour scale of the set.
        explain: Function from an image [H,W,3] and its label to more pictures, such as its reconstruction; or None.
    """
    for index, tiles in strips(scores, rows, _SIDE, scale, explain):
        yield index, _data_uri(tiles)


def strips(
    scores: ScoreSet,
    rows: Collection[int],
    side: int,
    scale: ColourScale,
    explain: Explain | None = None,
) -> Iterator[tuple[int, list[Rgb]]]:
    """Yield row number and tiles of each row: original, explanation, anomaly map and overlay, as far as they exist.

    Args:
        scores: Scored set.
        rows: Row numbers.
        side: Longer side of a tile in pixels.
        scale: Colour scale of the set.
        explain: Function from an image [H,W,3] and its label to more pictures, such as its reconstruction; or None.
    """
    remaining = set(rows)
    for index, anomaly_map in scores.maps():
        if index in remaining:
            remaining.remove(index)
            if tiles := _tiles(scores, index, anomaly_map, scale, side, explain):
                yield index, tiles
    for index in sorted(remaining):
        if tiles := _tiles(scores, index, None, scale, side, explain):
            yield index, tiles


@dataclass(frozen=True)
class Thumbnail:
    """Image of a scored row with a smaller copy, on which heatmaps are drawn.

    Attributes:
        row: The scored row.
        image: Original image [H,W,3].
        small: The smaller copy [h,w,3].
    """

    row: ScoredImage
    image: Rgb
    small: Rgb

    @classmethod
    def read(cls, scores: ScoreSet, index: int, side: int) -> Thumbnail | None:
        """Read the image of a row; None if it cannot be read.

        Args:
            scores: Scored set.
            index: Row number.
            side: Longer side of the copy in pixels.
        """
        row = scores.rows[index]
        try:
            image = to_display_image(read_pixels(Path(row.path), scores.channels, bit_depth=scores.bit_depth))
        except ImageError:
            return None
        factor = side / max(image.shape[:2])
        height, width = (max(1, round(length * factor)) for length in image.shape[:2])
        return cls(row, image, resize(image, height, width))

    def overlay(self, scores: ScoreSet, anomaly_map: Map, scale: ColourScale) -> Rgb:
        """Tint the copy by an anomaly map of a set, and draw the contour and the ground truth."""
        return overlay(
            self.small,
            anomaly_map,
            scale,
            contour_at=scores.calibration.pixel_threshold if scores.calibration else None,
            truth=self._truth,
        )

    @cached_property
    def _truth(self) -> NDArray[np.bool_] | None:
        """Mask in the size of the copy, with even the smallest defect visible; None without a fitting mask."""
        if self.row.mask is None:
            return None
        try:
            mask = read_mask(Path(self.row.mask))
        except ImageError:
            return None
        if mask.shape != self.image.shape[:2]:
            return None
        return np.asarray(resize(mask[..., None].astype(np.uint8) * 255, *self.small.shape[:2])[..., 0] > 0)


def colour_scale(scores: ScoreSet, maps: Iterable[Map] | None = None) -> ColourScale:
    """Return the colour scale of a set; without calibration it is computed from the given maps, or all maps."""
    if scores.calibration:
        return ColourScale.from_calibration(scores.calibration)
    if maps is None:
        maps = (anomaly_map for _, anomaly_map in scores.maps())
    scales = [ColourScale.from_values(anomaly_map) for anomaly_map in maps]
    if not scales:
        return ColourScale(0, 1)
    return ColourScale(float(np.median([each.low for each in scales])), max(each.high for each in scales))


def _tiles(
    scores: ScoreSet,
    index: int,
    anomaly_map: Map | None,
    scale: ColourScale,
    side: int,
    explain: Explain | None,
) -> list[Rgb]:
    """Return original, explanation, map and overlay, as far as they exist; empty for unreadable images."""
    thumbnail = Thumbnail.read(scores, index, side)
    if thumbnail is None:
        return []
    size = thumbnail.small.shape[:2]
    tiles = [thumbnail.small]
    if explain is not None:
        tiles += [resize(one, *size) for one in explain(thumbnail.image, thumbnail.row.label)]
    if anomaly_map is None:
        return tiles
    heatmap = thumbnail.overlay(scores, anomaly_map, scale)
    return [*tiles, colourise(scale(upsample(anomaly_map, *size))), heatmap]


def joined(tiles: list[Rgb], scale: ColourScale | None = None) -> Rgb:
    """Join tiles of the same height side by side, with the colour bar of a scale right of the anomaly map."""
    gap = np.full((len(tiles[0]), _GAP, 3), _GREY if scale is None else _WHITE, np.uint8)
    bar = [] if scale is None or len(tiles) == 1 else [colour_bar(max(len(tiles[0]), _MIN_BAR), scale)]
    shown = [_grown(tile, len(bar[0])) if bar else tile for tile in tiles]
    return np.hstack([part for tile in (*shown[:-1], *bar, shown[-1]) for part in (tile, gap)][:-1])


def _grown(tile: Rgb, height: int) -> Rgb:
    return np.pad(tile, ((0, height - len(tile)), (0, 0), (0, 0)), constant_values=_WHITE)


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
    return as_data_uri(data)


def as_data_uri(jpeg: bytes) -> str:
    """Return a JPEG file as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")
