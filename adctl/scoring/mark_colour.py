"""Colour that marks anomalies on a picture, chosen to differ from the picture's own colours."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rgb = NDArray[np.uint8]

CANDIDATES = ((255, 40, 40), (255, 0, 200), (0, 140, 255), (255, 225, 0))
"""Red, magenta, blue and yellow. Green is left out, because on a production line it means good."""

_SAMPLES = 32
_SHARE = 0.1
"""Share of the picture's pixels that may be more similar to the chosen colour than the distance it is chosen by."""


def mark_colour(image: Rgb) -> tuple[int, int, int]:
    """Return the candidate that is farthest from the colours of an image [H,W,3] in CIELAB.

    The distance of a candidate is that to the tenth most similar per cent of the pixels, so a few pixels of its colour
    do not exclude it.
    """
    rows, columns = (np.linspace(0, side - 1, min(side, _SAMPLES)).astype(int) for side in image.shape[:2])
    pixels = to_lab(np.ascontiguousarray(image[rows[:, None], columns])).reshape(-1, 1, 3)
    distances = np.linalg.norm(pixels - _candidates_lab(), axis=2)
    rank = int(_SHARE * (len(distances) - 1))
    return CANDIDATES[int(np.partition(distances, rank, axis=0)[rank].argmax())]


def to_lab(image: Rgb) -> NDArray[np.float32]:
    """Convert an RGB image [H,W,3] to CIELAB, lightness 0 to 100."""
    return np.asarray(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)


@cache
def _candidates_lab() -> NDArray[np.float32]:
    """Return the candidates [1,4,3] in CIELAB; OpenCV computes its tables for it once, in tenths of a second."""
    return to_lab(np.array([CANDIDATES], np.uint8))
