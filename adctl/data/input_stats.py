"""Statistics of the images that a detector gets: they show drift of the light, the focus, the camera and the format."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

from adctl.data.images import resize
from adctl.thresholds.drift import INPUTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adctl.data.loader import LoadedImage

_LONGEST = 512
"""Pixels of the longer side; larger images, which the network gets as tiles, are scaled down."""

_COLOURS = 3
_SUMMED = 4
"""Most channels that OpenCV sums."""


def measure_input(item: LoadedImage) -> tuple[float, ...]:
    """Measure a readable image: one number for each name in `adctl.thresholds.drift.INPUTS`.

    Brightness is the mean of the pixels, 0 to 255. Sharpness is the mean absolute Laplacian divided by the contrast.
    The shares of red and blue are percentages of the sum of the three channels, 0 for other images.
    """
    pixels = item.pixels if item.whole is None else _scaled_down(item.whole)
    assert pixels is not None
    size = pixels.shape[0] * pixels.shape[1]
    few = pixels.shape[2] <= _SUMMED  # OpenCV sums them in a twentieth of the time
    means = np.array(cv2.sumElems(pixels)[: pixels.shape[2]]) / size if few else pixels.mean(axis=(0, 1))
    coloured = len(means) == _COLOURS
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if coloured else np.ascontiguousarray(pixels[..., 0])
    contrast = cv2.meanStdDev(grey)[1].item()
    sharpness = cv2.norm(cv2.Laplacian(grey, cv2.CV_16S), cv2.NORM_L1) / size / (contrast + 1)
    red, _, blue = 100 * means / max(float(means.sum()), 1.0) if coloured else (0.0, 0.0, 0.0)
    values = (means.mean(), sharpness, red, blue, item.width, item.height)
    return tuple(float(value) for _, value in zip(INPUTS, values, strict=True))


def _scaled_down(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    scale = _LONGEST / max(pixels.shape[:2])
    return resize(pixels, *(max(1, round(side * scale)) for side in pixels.shape[:2])) if scale < 1 else pixels
