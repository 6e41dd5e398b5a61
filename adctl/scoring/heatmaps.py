"""Heatmap pictures and boxes from anomaly maps, with one colour scale for all images so that they can be compared.

Works on arrays and records; it does not run detectors or write files.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from adctl.data.images import resize
from adctl.records import Box, Calibration, ScoredImage, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Rgb = NDArray[np.uint8]
    Map = NDArray[np.float32]

_THRESHOLD_AT = 0.6
"""Position of the pixel threshold on the colour scale, 0 to 1."""

_SPAN = 1.25
"""Width of the colour scale as a multiple of the pixel threshold: from 0.25 to 1.5 times the threshold."""

_OPACITY = 0.75
_FADE = (0.5, 0.8)
"""Positions on the scale where colour starts and where it reaches full opacity. Colour starts at 0.875 times the
threshold: maps of good parts have values not far below, and an earlier start would colour the whole picture."""

_TINY = 1e-12
LARGEST = 768
"""Largest height or width of a shown image, in pixels; see `heatmap_picture`."""

_SMALLEST = 256
_MIN_WIDTH = 320
_MIN_REGION = 0.0005
_BAR_WIDTH = 14
_LINE_HEIGHT = 19
_GAP = 8
_BACKGROUND = 250
_TEXT_COLOUR = (25, 25, 28)
_VERDICT_COLOURS = {
    Verdict.REJECT: (200, 30, 30),
    Verdict.WARN: (170, 100, 0),
    Verdict.GOOD: (20, 120, 60),
    Verdict.UNCALIBRATED: (110, 110, 110),
}
_CONTOUR = (255, 255, 255)
_BOX = (0, 255, 255)
_TRUTH = (90, 255, 150)


@dataclass(frozen=True)
class ColourScale:
    """Linear scale from map values to the range 0 to 1.

    Attributes:
        low: Map value that becomes 0, as do all lower values.
        high: Map value that becomes 1, as do all higher values.
    """

    low: float
    high: float

    @classmethod
    def from_calibration(cls, calibration: Calibration) -> ColourScale:
        """Return the scale of a calibrated model, the same for all images, with the pixel threshold at 60 %."""
        threshold = calibration.pixel_threshold if calibration.pixel_threshold is not None else calibration.threshold
        lowest, highest = calibration.score_range
        # The range of the good scores is used too, because the threshold can be close to zero.
        span = max(abs(threshold) * _SPAN, highest - lowest, _TINY)
        return cls(threshold - span * _THRESHOLD_AT, threshold + span * (1 - _THRESHOLD_AT))

    @classmethod
    def from_values(cls, values: Map) -> ColourScale:
        """Return a scale from the median to the maximum of the values, for models without calibration."""
        return cls(float(np.median(values)), float(values.max()))

    def __call__(self, values: Map) -> Map:
        """Scale map values to the range 0 to 1."""
        return np.asarray(np.clip((values - self.low) / max(self.high - self.low, _TINY), 0, 1), np.float32)


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


def colourise(values: Map) -> Rgb:
    """Convert values from 0 to 1 to RGB colours of the map inferno, which colour-blind people can read too."""
    levels = np.asarray(np.clip(values, 0, 1) * 255, np.uint8)
    return np.asarray(cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB))


def overlay(
    image: Rgb,
    anomaly_map: Map,
    scale: ColourScale,
    *,
    boxes: Sequence[Box] = (),
    contour_at: float | None = None,
    truth: NDArray[np.bool_] | None = None,
) -> Rgb:
    """Draw the heatmap over an image; pixels with low map values keep their colours.

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
    picture = image.copy()
    _tint(picture, values, scale)
    thickness = max(1, round(max(height, width) / 400))
    if contour_at is not None:
        _outline(picture, values > contour_at, _CONTOUR, thickness)
    if truth is not None:
        # The line is drawn outside the mask, so that a small defect stays visible.
        around = np.ones((2 * thickness + 5,) * 2, np.uint8)
        _outline(picture, cv2.dilate(truth.astype(np.uint8), around) > 0, _TRUTH, thickness, dash=5 * thickness)
    for box in boxes:
        corner = (box.x + box.width - 1, box.y + box.height - 1)
        cv2.rectangle(picture, (box.x, box.y), corner, (0, 0, 0), thickness + 2)
        cv2.rectangle(picture, (box.x, box.y), corner, _BOX, thickness)
    return picture


def heatmap_picture(
    image: Rgb, anomaly_map: Map, scale: ColourScale, row: ScoredImage, *, contour_at: float | None = None
) -> Rgb:
    """Draw the picture that `adctl score` writes: caption, original image, heatmap and colour bar.

    Args:
        image: RGB image [H,W,3] of any size; it is shown with its longer side between 256 and 768 pixels.
        anomaly_map: Anomaly map [h,w].
        scale: Colour scale of the whole folder.
        row: Row of the image, with boxes in pixels of the original.
        contour_at: Map value whose contour is drawn unless the verdict is good; None draws no contour.
    """
    factor = min(max(1.0, _SMALLEST / max(image.shape[:2])), LARGEST / max(image.shape[:2]))
    height, width = max(24, round(image.shape[0] * factor)), max(24, round(image.shape[1] * factor))
    shown = resize(image, height, width)
    boxes = [_resize_box(box, width / (row.width or width), height / (row.height or height)) for box in row.boxes]
    contour = None if row.verdict is Verdict.GOOD else contour_at
    right = overlay(shown, anomaly_map, scale, boxes=boxes, contour_at=contour)
    columns = [0, width + _GAP, 2 * (width + _GAP)]
    picture_width = max(_MIN_WIDTH, columns[2] + _BAR_WIDTH)
    head = caption(row, picture_width)
    picture = np.full((len(head) + height, picture_width, 3), _BACKGROUND, np.uint8)
    picture[: len(head)] = head
    for column, part in zip(columns, (shown, right, colour_bar(height)), strict=True):
        picture[len(head) :, column : column + part.shape[1]] = part
    return picture


def _tint(picture: Rgb, values: Map, scale: ColourScale) -> None:
    """Blend the colours of values [H,W] into a picture [H,W,3] where the values are high enough, in place."""
    begin = scale.low + _FADE[0] * (scale.high - scale.low)
    left, top, width, height = cv2.boundingRect((values >= begin).view(np.uint8))
    if width == 0:
        return
    part = (slice(top, top + height), slice(left, left + width))
    level = scale(values[part])
    opacity = _OPACITY * np.clip((level - _FADE[0]) / (_FADE[1] - _FADE[0]), 0, 1)
    below = np.ascontiguousarray(picture[part])
    picture[part] = cv2.blendLinear(below, colourise(level), 1 - opacity, opacity)


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


@lru_cache
def colour_bar(height: int) -> Rgb:
    """Return the colour bar [height,W,3], highest value at the top, with a line at the pixel threshold.

    The result is cached, so callers must not change it.
    """
    ramp = np.linspace(1, 0, height, dtype=np.float32)[:, None].repeat(_BAR_WIDTH, axis=1)
    bar = colourise(ramp)
    bar[round(height * (1 - _THRESHOLD_AT))] = _CONTOUR
    return bar


def caption(row: ScoredImage, width: int) -> Rgb:
    """Draw a line with verdict, score and threshold, and a line with the file name."""
    picture = np.full((2 * _LINE_HEIGHT + 4, width, 3), _BACKGROUND, np.uint8)
    available = width - 8
    name = _draw_text(to_ascii(row.key))
    if name.shape[1] > available:
        dots = _draw_text("...")
        name = np.hstack([dots, name[:, name.shape[1] - available + dots.shape[1] :]])
    verdict = _draw_text(_verdict_text(row))[:, :available]
    colour = _VERDICT_COLOURS.get(row.verdict, _TEXT_COLOUR)
    for top, text, ink in ((3, verdict, colour), (3 + _LINE_HEIGHT, name, _TEXT_COLOUR)):
        line = picture[top : top + _LINE_HEIGHT, 4 : 4 + text.shape[1]]
        opacity = text[: len(line), :, None] / np.float32(255)
        line[:] = np.rint(_BACKGROUND + opacity * (np.array(ink, np.float32) - _BACKGROUND))
    return picture


def _draw_text(text: str) -> NDArray[np.uint8]:
    """Return a line of text as opacity [_LINE_HEIGHT,W], 0 to 255."""
    return np.hstack([_glyph(character) for character in text])


@lru_cache(maxsize=256)
def _glyph(character: str) -> NDArray[np.uint8]:
    """Return one character as opacity; cached, because drawing text takes longer than drawing the heatmap."""
    font = _font(13)
    cell = Image.new("L", (max(1, round(font.getlength(character))), _LINE_HEIGHT))
    ImageDraw.Draw(cell).text((0, 0), character, fill=255, font=font)
    return np.asarray(cell)


def _verdict_text(row: ScoredImage) -> str:
    score = f"{row.score:.4g}" if row.score is not None else ""
    if row.threshold is None:
        return f"NO THRESHOLD  {score}"
    sign = ">" if row.verdict is Verdict.REJECT else "<="
    return f"{str(row.verdict).upper()}  {score} {sign} {row.threshold:.4g}"


def to_ascii(text: str) -> str:
    """Convert text to ASCII, because Pillow's default font has no accents or other scripts."""
    without_accents = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return without_accents.encode("ascii", "replace").decode("ascii")


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
