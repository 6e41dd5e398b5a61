"""Region of interest (ROI), encoded as text so that it can be stored in a detector's settings.

A rectangle `x,y,width,height` in pixels is cropped before any other preprocessing. A mask scales with the image: its
bounding box is cropped, and pixels outside the mask are set to mid-grey. This is done for training images and scored
images alike, so that the grey area is normal to the detector. The mask file is read once, when the text is encoded.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from adctl import reading
from adctl.data.images import MIN_SIDE, resize
from adctl.data.masks import read_mask
from adctl.errors import ImageError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adctl.data.images import RgbImage
    from adctl.data.masks import BoolMask

FILL = 128
"""Grey value of hidden pixels; it is near zero after the network's normalisation."""

_PREFIX = "mask:"
_LONGEST_MASK = 512
_NUMBERS = 4


@dataclass(frozen=True)
class RoiBox:
    """Rectangle inside an image, pixels."""

    top: int
    left: int
    height: int
    width: int


class Region:
    """Region of interest: either a rectangle or a mask.

    Args:
        rectangle: Left, top, width and height in pixels, or None.
        mask: Array [h,w] of bool that covers the image, true inside the region; or None.
    """

    def __init__(self, rectangle: tuple[int, int, int, int] | None, mask: BoolMask | None) -> None:
        self._rectangle = rectangle
        self._mask = mask

    def box(self, height: int, width: int) -> RoiBox:
        """Return the region's bounding box, clipped to an image of this size."""
        if self._rectangle is not None:
            left, top, box_width, box_height = self._rectangle
        else:
            left, top, box_width, box_height = cv2.boundingRect(self._scaled_mask(height, width).astype(np.uint8))
        bottom, right = min(height, top + box_height), min(width, left + box_width)
        return RoiBox(top, left, bottom - top, right - left)

    def check(self, path: Path, height: int, width: int) -> None:
        """Check that enough of the region lies in an image.

        Raises:
            ImageError: A side of the clipped bounding box is shorter than `MIN_SIDE`.
        """
        box = self.box(height, width)
        if min(box.height, box.width) < MIN_SIDE:
            raise ImageError(
                f"Cannot use the image {path}: it is {width} x {height} pixels, "
                "and the region of interest lies outside it.",
                "Use images of equal size, or give the region as a mask, which scales with the image.",
            )

    def crop(self, image: RgbImage) -> RgbImage:
        """Crop an image [H,W,C] to the bounding box, and set pixels outside the mask to mid-grey."""
        box = self.box(*image.shape[:2])
        part = image[box.top : box.top + box.height, box.left : box.left + box.width]
        if self._mask is None:
            return part
        inside = self._scaled_mask(*image.shape[:2])[box.top : box.top + box.height, box.left : box.left + box.width]
        masked: RgbImage = np.where(inside[..., None], part, np.uint8(FILL))
        return masked

    def cells(self, shape: tuple[int, int], height: int, width: int) -> BoolMask:
        """Return which cells of an image's map have their centre inside the region, as bool of shape `shape`.

        Args:
            shape: Shape of the map, which covers the image.
            height: Height of the image, pixels.
            width: Width of the image, pixels.
        """
        box = self.box(height, width)
        rows = (np.arange(shape[0]) + 0.5) * height / shape[0]
        columns = (np.arange(shape[1]) + 0.5) * width / shape[1]
        in_rows = (rows >= box.top) & (rows < box.top + box.height)
        in_columns = (columns >= box.left) & (columns < box.left + box.width)
        inside: BoolMask = in_rows[:, None] & in_columns[None]
        if self._mask is not None:
            inside &= self._scaled_mask(height, width)[rows.astype(int)[:, None], columns.astype(int)[None]]
        return inside

    def _scaled_mask(self, height: int, width: int) -> BoolMask:
        assert self._mask is not None
        if self._mask.shape == (height, width):
            return self._mask
        values = cv2.resize(self._mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        return np.asarray(values, bool)


@lru_cache(maxsize=8)
def decode_region(text: str) -> Region:
    """Decode a region from the text of `encode_region`.

    Raises:
        ValueError: The text is not a valid region.
    """
    if text.startswith(_PREFIX):
        data = np.frombuffer(base64.b64decode(text.removeprefix(_PREFIX), validate=True), np.uint8)
        mask = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
        if mask is None or not mask.any():
            raise ValueError("the mask of the region is damaged or empty")
        return Region(None, np.asarray(mask, bool))
    left, top, width, height = _rectangle(text)
    return Region((left, top, width, height), None)


def encode_region(value: str) -> str:
    """Encode the value of `--roi` as text: a rectangle, or the pixels of a mask image.

    Raises:
        UsageError: The value is neither a rectangle nor the path of a mask image with a marked area.
    """
    if value.startswith(_PREFIX):
        return value
    try:
        return ",".join(map(str, _rectangle(value)))
    except ValueError as error:
        path = Path(value)
        if not reading.is_regular(path):
            raise UsageError(
                f"--roi {value} is not a region: {error}, and there is no image file of that name.",
                "Give x,y,width,height in pixels, or a mask image that is white inside the region and black outside.",
            ) from error
    try:
        mask = read_mask(path)
    except ImageError as error:
        raise UsageError(error.message, error.remedy) from error
    if not mask.any():
        raise UsageError(f"The region mask {path} is empty.", "Paint the region white.")
    _, encoded = cv2.imencode(".png", _shrink_mask(mask.astype(np.uint8) * 255), [cv2.IMWRITE_PNG_BILEVEL, 1])
    return _PREFIX + base64.b64encode(encoded.tobytes()).decode("ascii")


def _rectangle(text: str) -> tuple[int, int, int, int]:
    numbers = [int(part) for part in text.split(",")] if text.count(",") == _NUMBERS - 1 else []
    if len(numbers) != _NUMBERS:
        raise ValueError("a rectangle has four numbers, x,y,width,height")
    left, top, width, height = numbers
    if left < 0 or top < 0 or min(width, height) < MIN_SIDE:
        raise ValueError(f"x and y must be at least 0, width and height at least {MIN_SIDE} pixels")
    return left, top, width, height


def _shrink_mask(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = _LONGEST_MASK / max(mask.shape)
    if scale >= 1:
        return mask
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    small = resize(mask[..., None], height, width)[..., 0]
    return np.where(small > 127, np.uint8(255), np.uint8(0))  # noqa: PLR2004 - half of white
