"""Heatmap pictures and boxes from anomaly maps, with one colour scale for all images so that they can be compared.

Works on arrays and records; it does not run detectors or write files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

from adctl.data.images import resize
from adctl.records import Box, ScoredImage, Verdict
from adctl.scoring.colour_bar import BAR_WIDTH, ColourScale, colour_bar, colourise
from adctl.scoring.lettering import BACKGROUND, INK, LINE_HEIGHT, put_text, text_width
from adctl.scoring.mark_colour import mark_colour

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Rgb = NDArray[np.uint8]
    Map = NDArray[np.float32]

_OPACITY = 0.45
_FADE = (0.5, 0.8)
"""Positions on the scale where the tint starts and where it reaches full opacity. It starts at 0.875 times the
threshold: maps of good parts have values not far below, and an earlier start would tint the whole picture."""

LARGEST = 512
"""Largest height or width of a shown image, in pixels: three beside each other and the colour bar fit on a screen."""

_SMALLEST = 256
_MIN_WIDTH = 400
_MIN_BAR = 100
_STACK_FROM = 2.2
"""Width relative to height from which the pictures of an image stand below each other."""

_MIN_REGION = 0.0005
_THIN = 200
"""Size of a picture in pixels whose outlines are one pixel thick."""

_GAP, _MARGIN = 10, 5
_TOP, _BOTTOM = _MARGIN + 3 * LINE_HEIGHT + _MARGIN, LINE_HEIGHT + _MARGIN
"""Heights above and below the pictures in pixels, for text."""

_VERDICT_COLOURS = {
    Verdict.REJECT: (200, 30, 30),
    Verdict.WARN: (170, 100, 0),
    Verdict.GOOD: (20, 120, 60),
    Verdict.UNCALIBRATED: (110, 110, 110),
}
_TRUTH = (255, 255, 255)


def upsample(anomaly_map: Map, height: int, width: int) -> Map:
    """Resize an anomaly map [h,w] to image size [H,W] by bilinear interpolation, aligned at cell centres.

    A map that is finer than the image is averaged first, so that every cell counts.
    """
    rows, columns = min(height, anomaly_map.shape[0]), min(width, anomaly_map.shape[1])
    if (rows, columns) != anomaly_map.shape:
        anomaly_map = np.asarray(cv2.resize(anomaly_map, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)
    return np.asarray(cv2.resize(anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def boxes_from_map(anomaly_map: Map, threshold: float, width: int, height: int) -> tuple[Box, ...]:
    """Return boxes around the regions above a threshold, in pixels of the original image, highest peak first.

    Regions smaller than 0.05 % of the image are left out, unless all regions are that small.

    Args:
        anomaly_map: Anomaly map [h,w].
        threshold: Threshold for map values.
        width: Width of the original image in pixels.
        height: Height of the original image in pixels.
    """
    if anomaly_map.max() <= threshold:  # interpolation between cells never exceeds the maximum
        return ()
    # Large originals are evaluated at a smaller size, because the map has no finer detail.
    scale = min(1.0, 1024 / max(width, height))
    small = (max(1, round(height * scale)), max(1, round(width * scale)))
    values = upsample(anomaly_map, *small)
    above = (values > threshold).view(np.uint8)
    across, down, *size = cv2.boundingRect(above)  # in most images the regions are small, so a part is enough
    if 0 in size:
        return ()
    inside = (slice(down, down + size[1]), slice(across, across + size[0]))
    _, regions, statistics, _ = cv2.connectedComponentsWithStats(above[inside], connectivity=8)
    regions_found = []
    for number, (x, y, w, h, area) in enumerate(statistics[1:], 1):
        peak = float(values[inside][y : y + h, x : x + w][regions[y : y + h, x : x + w] == number].max())
        left, top = int((across + x) / scale), int((down + y) / scale)
        right = min(width, int(np.ceil((across + x + w) / scale)))
        bottom = min(height, int(np.ceil((down + y + h) / scale)))
        regions_found.append((area, Box(left, top, right - left, bottom - top, peak)))
    large = [box for area, box in regions_found if area >= _MIN_REGION * values.size]
    return tuple(sorted(large or [box for _, box in regions_found], key=lambda box: -box.peak))


def overlay(
    image: Rgb,
    anomaly_map: Map,
    scale: ColourScale,
    *,
    boxes: Sequence[Box] = (),
    contour_at: float | None = None,
    truth: NDArray[np.bool_] | None = None,
) -> Rgb:
    """Tint an image where the anomaly map is high, in a colour that differs from those of the image.

    Pixels with low map values keep their colours. The higher the value, the stronger the tint.

    Args:
        image: RGB image [H,W,3].
        anomaly_map: Anomaly map [h,w].
        scale: Colour scale of the whole folder.
        boxes: Boxes to draw, in pixels of this image.
        contour_at: Map value whose contour is drawn; None draws no contour.
        truth: Ground-truth mask [H,W] to mark with a dashed line; None draws no line.
    """
    height, width = image.shape[:2]
    values = upsample(anomaly_map, height, width)
    picture, colour = image.copy(), mark_colour(image)
    _tint(picture, values, scale, colour)
    thickness = max(1, round(max(height, width) / _THIN))
    if contour_at is not None:
        _outline(picture, values > contour_at, colour, thickness)
    if truth is not None:
        # The line is drawn outside the mask, so that a small defect stays visible.
        around = np.ones((2 * thickness + 5,) * 2, np.uint8)
        _outline(picture, cv2.dilate(truth.astype(np.uint8), around) > 0, _TRUTH, thickness, dash=5 * thickness)
    for box in boxes:
        corner = (box.x + box.width - 1, box.y + box.height - 1)
        cv2.rectangle(picture, (box.x, box.y), corner, (0, 0, 0), thickness + 2)
        cv2.rectangle(picture, (box.x, box.y), corner, colour, thickness)
    return picture


def map_layer(anomaly_map: Map, scale: ColourScale, height: int, width: int) -> NDArray[np.uint8]:
    """Draw an anomaly map to lay over its image: RGBA [h,w,4], the more opaque the higher the value.

    Args:
        anomaly_map: Anomaly map [h,w].
        scale: Colour scale.
        height: Height of the image, pixels; the longer side of the picture is at most `LARGEST`.
        width: Width of the image, pixels.
    """
    factor = min(1.0, LARGEST / max(height, width))
    rows, columns = (max(1, round(side * factor)) for side in (height, width))
    values = scale(upsample(anomaly_map, rows, columns))
    return np.dstack([colourise(values), (255 * values).astype(np.uint8)])


def heatmap_picture(
    image: Rgb, anomaly_map: Map, scale: ColourScale, row: ScoredImage, *, contour_at: float | None = None
) -> Rgb:
    """Draw the picture that `adctl score` writes: caption, image, anomaly map with its colour bar, and overlay.

    Args:
        image: RGB image [H,W,3] of any size; it is shown with its longer side between 256 and 512 pixels.
        anomaly_map: Anomaly map [h,w].
        scale: Colour scale of the whole folder.
        row: Row of the image, with boxes in pixels of the original.
        contour_at: Map value whose contour is drawn unless the verdict is good; None draws no contour.
    """
    factor = min(max(1.0, _SMALLEST / max(image.shape[:2])), LARGEST / max(image.shape[:2]))
    height, width = max(24, round(image.shape[0] * factor)), max(24, round(image.shape[1] * factor))
    shown, values = resize(image, height, width), upsample(anomaly_map, height, width)
    boxes = [_resize_box(box, width / (row.width or width), height / (row.height or height)) for box in row.boxes]
    contour = None if row.verdict is Verdict.GOOD else contour_at
    marked = overlay(shown, values, scale, boxes=boxes, contour_at=contour)
    panels = {"Image": shown, "Anomaly map": colourise(scale(values)), "Overlay": marked}
    layout = _below_each_other(panels) if width > _STACK_FROM * height else _side_by_side(panels)
    picture = np.full((*layout.size, 3), BACKGROUND, np.uint8)
    for (top, left), (title, panel) in zip(layout.corners, panels.items(), strict=True):
        put_text(picture, title, left, top - LINE_HEIGHT)
        picture[top : top + height, left : left + width] = panel
    (top, left), length = layout.bar
    picture[top : top + length, left : left + BAR_WIDTH] = colour_bar(length, scale)
    picture[_MARGIN : _MARGIN + 2 * LINE_HEIGHT, _GAP:] = caption(row, layout.size[1] - _GAP)
    put_text(picture, _legend(row, values, contour), _GAP, layout.size[0] - LINE_HEIGHT)
    return picture


@dataclass(frozen=True)
class _Layout:
    """Places in a heatmap picture.

    Attributes:
        size: Height and width of the picture.
        corners: Top and left of each panel; its title is above.
        bar: Top and left, and the height of the colour bar.
    """

    size: tuple[int, int]
    corners: list[tuple[int, int]]
    bar: tuple[tuple[int, int], int]


def _side_by_side(panels: dict[str, Rgb]) -> _Layout:
    """Place panels of the same size beside each other, and the colour bar before the last one."""
    height, width = next(iter(panels.values())).shape[:2]
    right = _GAP
    corners = []
    for title in panels:
        corners.append((_TOP, right))
        right += max(width, text_width(title)) + _GAP
    left = corners[-1][1]
    corners[-1] = (_TOP, left + BAR_WIDTH + _GAP)
    length = max(height, _MIN_BAR)
    return _Layout(
        (_TOP + length + _BOTTOM, max(_MIN_WIDTH, right + BAR_WIDTH + _GAP)), corners, ((_TOP, left), length)
    )


def _below_each_other(panels: dict[str, Rgb]) -> _Layout:
    """Place panels of the same size below each other, and the colour bar at the right of all."""
    height, width = next(iter(panels.values())).shape[:2]
    step = height + _MARGIN + LINE_HEIGHT
    corners = [(_TOP + number * step, _GAP) for number in range(len(panels))]
    length = corners[-1][0] + height - _TOP
    left = width + 2 * _GAP
    return _Layout((_TOP + length + _BOTTOM, left + BAR_WIDTH + _GAP), corners, ((_TOP, left), length))


def caption(row: ScoredImage, width: int) -> Rgb:
    """Draw a line with verdict, score and threshold, and a line with the file name."""
    picture = np.full((2 * LINE_HEIGHT, width, 3), BACKGROUND, np.uint8)
    put_text(picture, _verdict_text(row), 0, 0, _VERDICT_COLOURS.get(row.verdict, INK))
    put_text(picture, row.key, 0, LINE_HEIGHT, keep_end=True)
    return picture


def _verdict_text(row: ScoredImage) -> str:
    score = f"score {row.score:.4g}" if row.score is not None else ""
    if row.threshold is None:
        return f"NO THRESHOLD   {score}"
    relation = "above" if row.score is not None and row.score > row.threshold else "not above"
    return f"{str(row.verdict).upper()}   {score}, {relation} the threshold {row.threshold:.4g}"


def _legend(row: ScoredImage, values: Map, contour_at: float | None) -> str:
    if contour_at is None:
        return "In boxes: above the pixel threshold" if row.boxes else "Tinted: high values of the anomaly map"
    if values.max() <= contour_at:
        return f"No region is above the pixel threshold {contour_at:.4g}"
    return f"Outlined: above the pixel threshold {contour_at:.4g}"


def _tint(picture: Rgb, values: Map, scale: ColourScale, colour: tuple[int, int, int]) -> None:
    """Blend a colour into a picture [H,W,3] where the values [H,W] are high enough, in place."""
    begin = scale.low + _FADE[0] * (scale.high - scale.low)
    left, top, width, height = cv2.boundingRect((values >= begin).view(np.uint8))
    if width == 0:
        return
    part = (slice(top, top + height), slice(left, left + width))
    # Linear in the values, so both steps of scaling are one.
    fade = ColourScale(begin, scale.low + _FADE[1] * (scale.high - scale.low))
    opacity = fade(values[part])
    opacity *= _OPACITY
    below, above = np.ascontiguousarray(picture[part]), _plane(colour, *picture.shape[:2])[part]
    picture[part] = cv2.blendLinear(below, above, 1 - opacity, opacity)


@lru_cache(maxsize=8)
def _plane(colour: tuple[int, int, int], height: int, width: int) -> Rgb:
    """Return a picture [height,width,3] of one colour; making one takes longer than blending it."""
    return np.full((height, width, 3), colour, np.uint8)


def _outline(
    picture: Rgb, region: NDArray[np.bool_], colour: tuple[int, int, int], thickness: int, dash: int | None = None
) -> None:
    """Draw the outline of a region with a black border, visible on light and on dark images, in place."""
    contours, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, (0, 0, 0), thickness + 2)
    if dash is None:
        cv2.drawContours(picture, contours, -1, colour, thickness)
        return
    for contour in contours:
        dashes = [contour[start : start + dash] for start in range(0, len(contour), 2 * dash)]
        cv2.polylines(picture, dashes, False, colour, thickness)


def _resize_box(box: Box, across: float, down: float) -> Box:
    width, height = max(1, round(box.width * across)), max(1, round(box.height * down))
    return Box(round(box.x * across), round(box.y * down), width, height, box.peak)
