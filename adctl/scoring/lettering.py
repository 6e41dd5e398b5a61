"""Text on pictures, drawn with the font that Pillow brings; each character is drawn once and kept.

Drawing a line of text with Pillow takes longer than drawing a heatmap.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rgb = NDArray[np.uint8]

LINE_HEIGHT = 19
"""Height of a line of text in pixels."""

BACKGROUND = 255
INK = (25, 25, 28)
_SIZE = 13


def put_text(
    picture: Rgb, text: str, left: int, top: int, colour: tuple[int, int, int] = INK, *, keep_end: bool = False
) -> None:
    """Draw a line of text on a picture [H,W,3] with the colour `BACKGROUND`, in place.

    Text that is too long for the picture is shortened with dots.

    Args:
        picture: Picture to draw on.
        text: Text; see `to_ascii` for what becomes of other characters.
        left: Distance of the text from the left edge in pixels.
        top: Distance of the line from the upper edge in pixels.
        colour: Colour of the text.
        keep_end: Whether to cut the beginning of a long text instead of its end.
    """
    drawn = _fitted(to_ascii(text), picture.shape[1] - left, keep_end=keep_end)
    area = picture[max(0, top) : top + LINE_HEIGHT, left : left + drawn.shape[1]]
    opacity = drawn[max(0, -top) :][: len(area), :, None] / np.float32(255)
    area[:] = np.rint(BACKGROUND + opacity * (np.array(colour, np.float32) - BACKGROUND))


def text_width(text: str) -> int:
    """Return the width of a line of text in pixels."""
    return sum(_glyph(character).shape[1] for character in to_ascii(text))


def to_ascii(text: str) -> str:
    """Convert text to ASCII, because the font has no accents or other scripts."""
    without_accents = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return without_accents.encode("ascii", "replace").decode("ascii")


def _fitted(text: str, width: int, *, keep_end: bool) -> NDArray[np.uint8]:
    """Return a line of text as opacity [LINE_HEIGHT,W], 0 to 255, at most `width` pixels wide."""
    drawn = _drawn(text)
    if drawn.shape[1] <= width:
        return drawn
    dots = _drawn("...")
    room = max(0, width - dots.shape[1])
    parts = [dots, drawn[:, drawn.shape[1] - room :]] if keep_end else [drawn[:, :room], dots]
    return np.hstack(parts)[:, : max(0, width)]


@lru_cache(maxsize=64)
def _drawn(text: str) -> NDArray[np.uint8]:
    return np.hstack([_glyph(character) for character in text or " "])


@lru_cache(maxsize=256)
def _glyph(character: str) -> NDArray[np.uint8]:
    """Return one character as opacity [LINE_HEIGHT,W]."""
    font = _font(_SIZE)
    cell = Image.new("L", (max(1, round(font.getlength(character))), LINE_HEIGHT))
    ImageDraw.Draw(cell).text((0, 0), character, fill=255, font=font)
    return np.asarray(cell)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
