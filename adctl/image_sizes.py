"""Sizes of a network's input: a number of pixels for a square, or height and width. Imports nothing heavy."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, TypeAlias

SMALLEST, LARGEST = 32, 4096
"""Bounds of a side, pixels."""

_TEXT = re.compile(r"\s*(\d+)(?:\s*[x×X]\s*(\d+))?\s*")  # noqa: RUF001 - people copy the multiplication sign
_PAIR = 2
_REDUCED = 2.0
"""Ratio of the sides of image and input that an automatically chosen input aims at for large images."""
_FAR_REDUCED = 2.2
"""Ratio of the sides of image and input from which small defects may be lost."""
_SIDE_STEP = 32


class _SizeType:
    """Annotation by which pydantic reads a size: N, `HEIGHTxWIDTH` or [height, width]; an equal pair becomes N."""

    words = "whole number or HEIGHTxWIDTH"

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        def read(value: Any) -> int | tuple[int, int]:
            size = parse_size(value)
            if size is None:
                raise PydanticCustomError(
                    "image_size",
                    "Input should be a number of pixels from {smallest} to {largest}, or two such as 192x448: "
                    "height x width",
                    {"smallest": SMALLEST, "largest": LARGEST},
                )
            return size

        return core_schema.no_info_plain_validator_function(read)


ImageSize: TypeAlias = Annotated[int | tuple[int, int], _SizeType()]
"""Size of the network's input, pixels: the side of a square, or height and width."""


def parse_size(value: Any) -> int | tuple[int, int] | None:
    """Return a size from a number, a text or a pair; None if it is none of them, or out of bounds."""
    if isinstance(value, str) and (match := _TEXT.fullmatch(value)):
        value = [int(side) for side in match.groups() if side is not None]
    sides = list(value) if isinstance(value, list | tuple) else [value]
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if not whole or not 1 <= len(sides) <= _PAIR or not all(SMALLEST <= side <= LARGEST for side in sides):
        return None
    return sides[0] if sides[0] == sides[-1] else (sides[0], sides[1])


def both_sides(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """Return height and width of a size, pixels."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def size_text(size: int | tuple[int, int] | list[int]) -> str:
    """Return a size as `--image-size` takes it: `256` or `192x448`."""
    height, width = both_sides(size)
    return str(height) if height == width else f"{height}x{width}"


def side_for_images(height: float, width: float, usual: int, largest: int) -> int:
    """Return the side of a square input for images: the usual one, or a larger one for images of twice that size.

    Args:
        height: Height of the images, pixels.
        width: Width of the images, pixels.
        usual: Smallest side, pixels.
        largest: Largest side, pixels.
    """
    wanted = math.sqrt(height * width) / _REDUCED
    return max(usual, min(largest, round(wanted / _SIDE_STEP) * _SIDE_STEP))


def small_defect_advice(height: float, width: float, size: int | tuple[int, int], cell: float) -> str | None:
    """Return what sees smaller defects, in a sentence; None if the input has a fifth of the image's pixels or more.

    Args:
        height: Height of the image, pixels.
        width: Width of the image, pixels.
        size: Size of the network's input, pixels.
        cell: Side of a cell of the map, pixels of the input.
    """
    rows, columns = both_sides(size)
    factor = math.sqrt(height * width / (rows * columns))
    if factor < _FAR_REDUCED:
        return None
    larger = size_text(doubled(size))
    tile = max(SMALLEST, round(math.sqrt(rows * columns)))
    count = math.ceil(height / tile) * math.ceil(width / tile)
    return (
        f"Images are reduced {factor:.1f}-fold, so defects below about {2 * cell * factor:.0f} pixels, two cells of "
        f"the map, may be missed: --image-size {larger} halves that in about 4 times the time and memory, and "
        f"--set tile={tile} brings it to {2 * cell:.0f} pixels in at least {count} times the time."
    )


def doubled(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width of an input with twice the sides, at most `LARGEST`."""
    rows, columns = both_sides(size)
    return min(LARGEST, 2 * rows), min(LARGEST, 2 * columns)


def size_for_aspect(aspect: float, square: int, step: int) -> int | tuple[int, int]:
    """Return the size with about the aspect ratio and about the area of a square.

    Args:
        aspect: Width divided by height.
        square: Side of the square, pixels.
        step: Divisor of both sides, pixels.
    """

    def misfit(size: tuple[int, int]) -> float:
        height, width = size
        # The area matters half as much as the shape: cost follows it, and defects are distorted by the other.
        return abs(math.log(width / height / aspect)) + abs(math.log(height * width / square**2)) / 2

    def near(side: float) -> list[int]:
        below = max(step, math.ceil(SMALLEST / step) * step, math.floor(side / step) * step)
        return [below, below + step]

    height, width = square / math.sqrt(aspect), square * math.sqrt(aspect)
    best = min(((one, other) for one in near(height) for other in near(width)), key=misfit)
    return best[0] if best[0] == best[1] else best
