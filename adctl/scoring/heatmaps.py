"""Anomaly maps as pictures and boxes: one fixed colour scale for a whole folder, so that two images compare.

Knows arrays and records, nothing of detectors or of where pictures go.
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
"""Where on the colour scale the pixel threshold lies."""

_SPAN = 1.25
"""Width of the colour scale, in pixel thresholds: it runs from a quarter of one to one and a half."""

_OPAQUE = 0.75
_FADE = (0.5, 0.8)
"""Where on the scale colour begins and is full. It begins close to the threshold, at 0.875 of it: the map of a
good part lies not far below, and would otherwise tint the whole picture."""

_TINY = 1e-12
LARGEST = 768
"""Of a picture's longer side, pixels; see `sheet`."""

_SMALLEST = 256
_NARROWEST = 320
_SPECK = 0.0005
_BAR = 14
_LINE = 19
_GAP = 8
_PAPER = 250
_INK = (25, 25, 28)
_MARK = {
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
    """Map values to 0-1: `low` and below is 0, `high` and above is 1.

    Attributes:
        low: Uncoloured.
        high: The strongest colour.
    """

    low: float
    high: float

    @classmethod
    def from_calibration(cls, calibration: Calibration) -> ColourScale:
        """The scale of every picture a calibrated model makes: the pixel threshold lies at 60 % of it."""
        middle = calibration.pixel_threshold if calibration.pixel_threshold is not None else calibration.threshold
        lowest, highest = calibration.score_range
        # A threshold near zero gives no measure of width; the spread of the good scores does.
        span = max(abs(middle) * _SPAN, highest - lowest, _TINY)
        return cls(middle - span * _THRESHOLD_AT, middle + span * (1 - _THRESHOLD_AT))

    @classmethod
    def from_values(cls, values: Map) -> ColourScale:
        """A scale from the values themselves, where nothing better is known."""
        return cls(float(np.median(values)), float(values.max()))

    def __call__(self, values: Map) -> Map:
        """Values to 0-1."""
        return np.asarray(np.clip((values - self.low) / max(self.high - self.low, _TINY), 0, 1), np.float32)


def upsample(anomaly_map: Map, height: int, width: int) -> Map:
    """Resize a map [h,w] that spans the image to pixels [H,W], bilinear, cell centres where they belong.

    Where the map is finer than the pixels its cells are averaged, so that none is passed over.
    """
    rows, columns = min(height, anomaly_map.shape[0]), min(width, anomaly_map.shape[1])
    if (rows, columns) != anomaly_map.shape:
        anomaly_map = np.asarray(cv2.resize(anomaly_map, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)
    return np.asarray(cv2.resize(anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)


def boxes_from_map(anomaly_map: Map, threshold: float, width: int, height: int) -> tuple[Box, ...]:
    """Rectangles around the regions above a threshold, in pixels of the original, strongest first.

    Specks below 0.05 % of the image are left out, unless that leaves none.

    Args:
        anomaly_map: Array [h,w].
        threshold: Of map values.
        width: Of the original, pixels.
        height: Of the original, pixels.
    """
    if anomaly_map.max() <= threshold:  # nor is there anything between cells
        return ()
    # Huge originals are looked at in a smaller size: a map has no finer detail anyway.
    scale = min(1.0, 1024 / max(width, height))
    small = (max(1, round(height * scale)), max(1, round(width * scale)))
    values = upsample(anomaly_map, *small)
    above = (values > threshold).view(np.uint8)
    across, down, *size = cv2.boundingRect(above)  # regions take up little of most images
    if 0 in size:
        return ()
    inside = (slice(down, down + size[1]), slice(across, across + size[0]))
    _, regions, statistics, _ = cv2.connectedComponentsWithStats(above[inside], connectivity=8)
    found = []
    for number, (x, y, w, h, area) in enumerate(statistics[1:], 1):
        peak = float(values[inside][y : y + h, x : x + w][regions[y : y + h, x : x + w] == number].max())
        left, top = int((across + x) / scale), int((down + y) / scale)
        right = min(width, int(np.ceil((across + x + w) / scale)))
        bottom = min(height, int(np.ceil((down + y + h) / scale)))
        found.append((area, Box(left, top, right - left, bottom - top, peak)))
    large = [box for area, box in found if area >= _SPECK * values.size]
    return tuple(sorted(large or [box for _, box in found], key=lambda box: -box.peak))


def colourise(values: Map) -> Rgb:
    """Values 0-1 to colours: perceptually even, and told apart by colour-blind eyes (inferno)."""
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
    """Colour an image where it is strange; where it is not, the photograph stays as it is.

    Args:
        image: Array [H,W,3].
        anomaly_map: Array [h,w].
        scale: Colours of the whole folder.
        boxes: To draw, in pixels of this image.
        contour_at: Draw the outline of what is above this map value.
        truth: Draw a dashed line around this mask [H,W] too.
    """
    height, width = image.shape[:2]
    values = upsample(anomaly_map, height, width)
    picture = image.copy()
    _tint(picture, values, scale)
    thickness = max(1, round(max(height, width) / 400))
    if contour_at is not None:
        _outline(picture, values > contour_at, _CONTOUR, thickness)
    if truth is not None:
        # Drawn around the mask, so that a small defect stays visible inside.
        around = np.ones((2 * thickness + 5,) * 2, np.uint8)
        _outline(picture, cv2.dilate(truth.astype(np.uint8), around) > 0, _TRUTH, thickness, dash=5 * thickness)
    for box in boxes:
        corner = (box.x + box.width - 1, box.y + box.height - 1)
        cv2.rectangle(picture, (box.x, box.y), corner, (0, 0, 0), thickness + 2)
        cv2.rectangle(picture, (box.x, box.y), corner, _BOX, thickness)
    return picture


def sheet(
    image: Rgb, anomaly_map: Map, scale: ColourScale, row: ScoredImage, *, contour_at: float | None = None
) -> Rgb:
    """The picture `adctl score` writes: original beside overlay, colour bar, and a caption with the verdict.

    Args:
        image: Array [H,W,3], any size; shown between 256 and 768 pixels high or wide.
        anomaly_map: Array [h,w].
        scale: Colours of the whole folder.
        row: What was found; its boxes are in pixels of the original.
        contour_at: Draw the outline of what is above this map value, unless the image was judged good.
    """
    factor = min(max(1.0, _SMALLEST / max(image.shape[:2])), LARGEST / max(image.shape[:2]))
    height, width = max(24, round(image.shape[0] * factor)), max(24, round(image.shape[1] * factor))
    shown = resize(image, height, width)
    boxes = [_scaled(box, width / (row.width or width), height / (row.height or height)) for box in row.boxes]
    contour = None if row.verdict is Verdict.GOOD else contour_at
    right = overlay(shown, anomaly_map, scale, boxes=boxes, contour_at=contour)
    columns = [0, width + _GAP, 2 * (width + _GAP)]
    whole = max(_NARROWEST, columns[2] + _BAR)
    head = caption(row, whole)
    picture = np.full((len(head) + height, whole, 3), _PAPER, np.uint8)
    picture[: len(head)] = head
    for column, part in zip(columns, (shown, right, colour_bar(height)), strict=True):
        picture[len(head) :, column : column + part.shape[1]] = part
    return picture


def _tint(picture: Rgb, values: Map, scale: ColourScale) -> None:
    """Lay colours over the part of a picture [H,W,3] where values [H,W] are high enough to show."""
    begin = scale.low + _FADE[0] * (scale.high - scale.low)
    left, top, width, height = cv2.boundingRect((values >= begin).view(np.uint8))
    if width == 0:
        return
    part = (slice(top, top + height), slice(left, left + width))
    level = scale(values[part])
    opacity = _OPAQUE * np.clip((level - _FADE[0]) / (_FADE[1] - _FADE[0]), 0, 1)
    below = np.ascontiguousarray(picture[part])
    picture[part] = cv2.blendLinear(below, colourise(level), 1 - opacity, opacity)


def _outline(
    picture: Rgb, region: NDArray[np.bool_], colour: tuple[int, int, int], thickness: int, dash: int | None = None
) -> None:
    """Draw a region's outline, on black so that it shows on light and dark ground."""
    contours, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, (0, 0, 0), thickness + 2)
    if dash is None:
        cv2.drawContours(picture, contours, -1, colour, thickness)
        return
    for contour in contours:
        dashes = [contour[start : start + dash] for start in range(0, len(contour), 2 * dash)]
        cv2.polylines(picture, dashes, False, colour, thickness)


def _scaled(box: Box, across: float, down: float) -> Box:
    width, height = max(1, round(box.width * across)), max(1, round(box.height * down))
    return Box(round(box.x * across), round(box.y * down), width, height, box.peak)


@lru_cache
def colour_bar(height: int) -> Rgb:
    """The colour scale [height,W,3], strongest at the top, with a line at the pixel threshold; not to be written on."""
    ramp = np.linspace(1, 0, height, dtype=np.float32)[:, None].repeat(_BAR, axis=1)
    bar = colourise(ramp)
    bar[round(height * (1 - _THRESHOLD_AT))] = _CONTOUR
    return bar


def caption(row: ScoredImage, width: int) -> Rgb:
    """One line with the verdict, the score and the threshold, and one with the file's name."""
    picture = np.full((2 * _LINE + 4, width, 3), _PAPER, np.uint8)
    room = width - 8
    name = _written(_plain(row.key))
    if name.shape[1] > room:
        more = _written("...")
        name = np.hstack([more, name[:, name.shape[1] - room + more.shape[1] :]])
    judgement = _written(_judgement(row))[:, :room]
    for top, text, ink in ((3, judgement, _MARK.get(row.verdict, _INK)), (3 + _LINE, name, _INK)):
        place = picture[top : top + _LINE, 4 : 4 + text.shape[1]]
        opacity = text[: len(place), :, None] / np.float32(255)
        place[:] = np.rint(_PAPER + opacity * (np.array(ink, np.float32) - _PAPER))
    return picture


def _written(text: str) -> NDArray[np.uint8]:
    """A line of text as opacity [_LINE,W], 0 to 255."""
    return np.hstack([_glyph(character) for character in text])


@lru_cache(maxsize=256)
def _glyph(character: str) -> NDArray[np.uint8]:
    """One character of a line: drawing each anew would take longer than colouring the picture below."""
    font = _font(13)
    cell = Image.new("L", (max(1, round(font.getlength(character))), _LINE))
    ImageDraw.Draw(cell).text((0, 0), character, fill=255, font=font)
    return np.asarray(cell)


def _judgement(row: ScoredImage) -> str:
    score = f"{row.score:.4g}" if row.score is not None else ""
    if row.threshold is None:
        return f"NO THRESHOLD  {score}"
    sign = ">" if row.verdict is Verdict.REJECT else "<="
    return f"{str(row.verdict).upper()}  {score} {sign} {row.threshold:.4g}"


def _plain(text: str) -> str:
    """The text in ASCII: Pillow's own font has no accents and no other scripts, and draws empty boxes for them."""
    bare = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return bare.encode("ascii", "replace").decode("ascii")


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
