"""Where to look: a region of interest, written as text so that it travels in a detector's settings.

A rectangle `x,y,width,height` in pixels of the image is cut out before anything else is done with the image. A mask,
which scales with the image, is cut out to the rectangle around it, and what lies outside it is painted mid-grey, in the
images to learn from as in those to judge: the same everywhere, it is never strange.

Knows arrays and text; the file of a mask is read once, when the text is made.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from adctl.data.images import MIN_SIDE, read_mask, resize
from adctl.errors import ImageError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adctl.data.images import BoolMask, RgbImage

FILL = 128
"""Grey of what is not to be seen: near zero once a network has normalised it."""

_PREFIX = "mask:"
_LONGEST_MASK = 512
_NUMBERS = 4


@dataclass(frozen=True)
class RoiBox:
    """A rectangle inside an image, pixels."""

    top: int
    left: int
    height: int
    width: int


class Region:
    """A region of interest.

    Args:
        rectangle: Left, top, width and height in pixels; None where there is a mask.
        mask: Array [h,w], true where to look, spanning the image; None where there is a rectangle.
    """

    def __init__(self, rectangle: tuple[int, int, int, int] | None, mask: BoolMask | None) -> None:
        self._rectangle = rectangle
        self._mask = mask

    def box(self, height: int, width: int) -> RoiBox:
        """The rectangle to look at in an image of this size, as far as it lies in it."""
        if self._rectangle is not None:
            left, top, wide, high = self._rectangle
        else:
            left, top, wide, high = cv2.boundingRect(self._scaled(height, width).astype(np.uint8))
        bottom, right = min(height, top + high), min(width, left + wide)
        return RoiBox(top, left, bottom - top, right - left)

    def check(self, path: Path, height: int, width: int) -> None:
        """Refuse an image in which there is nothing to look at.

        Raises:
            ImageError: Less than 16 pixels a side of the region lie in it.
        """
        box = self.box(height, width)
        if min(box.height, box.width) < MIN_SIDE:
            raise ImageError(
                f"Cannot use the image {path}: it is {width} x {height} pixels, the region of interest lies outside.",
                "Use images of one size, or give the region as a mask, which scales with them.",
            )

    def cut(self, image: RgbImage) -> RgbImage:
        """What is to be seen of an image [H,W,3]: the rectangle, mid-grey where a mask says not to look."""
        box = self.box(*image.shape[:2])
        part = image[box.top : box.top + box.height, box.left : box.left + box.width]
        if self._mask is None:
            return part
        inside = self._scaled(*image.shape[:2])[box.top : box.top + box.height, box.left : box.left + box.width]
        seen: RgbImage = np.where(inside[..., None], part, np.uint8(FILL))
        return seen

    def cells(self, shape: tuple[int, int], height: int, width: int) -> BoolMask:
        """Which cells of a map that spans an image of height x width lie inside, by their middles.

        Args:
            shape: Of the map.
            height: Of the image, pixels.
            width: Likewise.
        """
        box = self.box(height, width)
        rows = (np.arange(shape[0]) + 0.5) * height / shape[0]
        columns = (np.arange(shape[1]) + 0.5) * width / shape[1]
        in_rows = (rows >= box.top) & (rows < box.top + box.height)
        in_columns = (columns >= box.left) & (columns < box.left + box.width)
        inside: BoolMask = in_rows[:, None] & in_columns[None]
        if self._mask is not None:
            inside &= self._scaled(height, width)[rows.astype(int)[:, None], columns.astype(int)[None]]
        return inside

    def _scaled(self, height: int, width: int) -> BoolMask:
        assert self._mask is not None
        if self._mask.shape == (height, width):
            return self._mask
        values = cv2.resize(self._mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return np.asarray(values, bool)


@lru_cache(maxsize=8)
def decode_region(text: str) -> Region:
    """The region that a text from `encode_region` stands for.

    Raises:
        ValueError: It is none.
    """
    if text.startswith(_PREFIX):
        data = np.frombuffer(base64.b64decode(text.removeprefix(_PREFIX), validate=True), np.uint8)
        mask = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
        if mask is None or not mask.any():
            raise ValueError("the mask of the region is damaged or empty")
        return Region(None, np.asarray(mask, bool))
    left, top, width, height = _rectangle(text)
    return Region((left, top, width, height), None)


def encode_region(given: str) -> str:
    """What to keep of `--roi`: a rectangle as it was typed, a mask picture by its pixels.

    Raises:
        UsageError: It is neither a rectangle nor a mask picture that marks anything.
    """
    if given.startswith(_PREFIX):
        return given
    try:
        return ",".join(map(str, _rectangle(given)))
    except ValueError as error:
        path = Path(given)
        if not path.is_file():
            raise UsageError(
                f"--roi {given} is no region: {error}, and there is no picture of that name.",
                "Give x,y,width,height in pixels, or a picture that is black where not to look.",
            ) from error
    try:
        mask = read_mask(path)
    except ImageError as error:
        raise UsageError(error.message, error.remedy) from error
    if not mask.any():
        raise UsageError(f"The mask {path} of the region marks nothing.", "Paint white where to look.")
    _, encoded = cv2.imencode(".png", _reduced(mask.astype(np.uint8) * 255), [cv2.IMWRITE_PNG_BILEVEL, 1])
    return _PREFIX + base64.b64encode(encoded.tobytes()).decode("ascii")


def _rectangle(text: str) -> tuple[int, int, int, int]:
    numbers = [int(part) for part in text.split(",")] if text.count(",") == _NUMBERS - 1 else []
    if len(numbers) != _NUMBERS:
        raise ValueError("a rectangle is four numbers, x,y,width,height")
    left, top, width, height = numbers
    if left < 0 or top < 0 or min(width, height) < MIN_SIDE:
        raise ValueError(f"a rectangle starts at 0 or more and is at least {MIN_SIDE} pixels wide and high")
    return left, top, width, height


def _reduced(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = _LONGEST_MASK / max(mask.shape)
    if scale >= 1:
        return mask
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    small = resize(mask[..., None], height, width)[..., 0]
    return np.where(small > 127, np.uint8(255), np.uint8(0))  # noqa: PLR2004 - half of white
