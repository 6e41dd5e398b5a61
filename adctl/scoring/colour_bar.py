"""Colours of anomaly maps: the scale from map values to colours, and the bar that explains it with numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

from adctl.scoring.lettering import BACKGROUND, INK, LINE_HEIGHT, put_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from adctl.records import Calibration

    Rgb = NDArray[np.uint8]
    Map = NDArray[np.float32]

_THRESHOLD_AT = 0.6
"""Position of the pixel threshold on the colour scale, 0 to 1."""

_SPAN = 1.25
"""Width of the colour scale as a multiple of the pixel threshold: from 0.25 to 1.5 times the threshold."""

_TINY = 1e-12
_BAR_WIDTH, _TICK = 16, 5
BAR_WIDTH = 120
"""Width of a colour bar with its numbers in pixels."""

_SOFT = (90, 90, 95)


@dataclass(frozen=True)
class ColourScale:
    """Linear scale from map values to the range 0 to 1.

    Attributes:
        low: Map value that becomes 0, as do all lower values.
        high: Map value that becomes 1, as do all higher values.
        threshold: Pixel threshold, or None if there is none.
    """

    low: float
    high: float
    threshold: float | None = None

    @classmethod
    def from_calibration(cls, calibration: Calibration) -> ColourScale:
        """Return the scale of a calibrated model, the same for all images, with the pixel threshold at 60 %."""
        threshold = calibration.pixel_threshold if calibration.pixel_threshold is not None else calibration.threshold
        lowest, highest = calibration.score_range
        # The range of the good scores is used too, because the threshold can be close to zero.
        span = max(abs(threshold) * _SPAN, highest - lowest, _TINY)
        low, high = threshold - span * _THRESHOLD_AT, threshold + span * (1 - _THRESHOLD_AT)
        return cls(low, high, calibration.pixel_threshold)

    @classmethod
    def from_values(cls, values: Map) -> ColourScale:
        """Return a scale from the median to the maximum of the values, for models without calibration."""
        return cls(float(np.median(values)), float(values.max()))

    def __call__(self, values: Map) -> Map:
        """Scale map values to the range 0 to 1."""
        scaled = np.subtract(values, np.float32(self.low), dtype=np.float32)
        scaled /= np.float32(max(self.high - self.low, _TINY))
        return np.clip(scaled, 0, 1, out=scaled)

    def ticks(self) -> list[tuple[float, str]]:
        """Return position, 0 to 1, and text of four to ten round numbers on the scale, from the lowest."""
        span = max(self.high - self.low, _TINY)
        power = 10.0 ** math.floor(math.log10(span / 4))
        step = power * max(factor for factor in (1, 2, 2.5, 5) if factor * power <= span / 4)
        numbers = np.arange(math.ceil(self.low / step), math.floor(self.high / step) + 1) * step
        return [((number - self.low) / span, f"{number:.5g}") for number in numbers.tolist()]

    @property
    def threshold_at(self) -> float:
        """Position of the pixel threshold on the scale, 0 to 1."""
        return _THRESHOLD_AT

    @property
    def threshold_text(self) -> str:
        """Text of the pixel threshold, such as `2.5`; empty if there is none."""
        return "" if self.threshold is None else f"{self.threshold:.4g}"


def colourise(values: Map) -> Rgb:
    """Convert values from 0 to 1 to 64 RGB colours of the map inferno, which colour-blind people can read too.

    More colours look the same, and PNG files with fewer colours are smaller and written faster.
    """
    levels = cv2.convertScaleAbs(values, alpha=255)
    return np.asarray(cv2.applyColorMap(levels, _INFERNO))


_SHADES = np.linspace(0, 255, 64).round().astype(np.uint8).repeat(4)
_INFERNO = np.asarray(cv2.cvtColor(cv2.applyColorMap(_SHADES[:, None], cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB))


@lru_cache(maxsize=16)
def colour_bar(height: int, scale: ColourScale) -> Rgb:
    """Return the colour bar [height,BAR_WIDTH,3] with numbers, highest value at the top, and the pixel threshold named.

    The result is cached, so callers must not change it.
    """
    picture = np.full((height, BAR_WIDTH, 3), BACKGROUND, np.uint8)
    margin = LINE_HEIGHT // 2 if height > 4 * LINE_HEIGHT else 0
    length = height - 2 * margin
    ramp = np.linspace(1, 0, length, dtype=np.float32)[:, None].repeat(_BAR_WIDTH, axis=1)
    picture[margin : margin + length, :_BAR_WIDTH] = colourise(ramp)

    def row_of(at: float) -> int:
        return margin + round((length - 1) * (1 - at))

    texts = _bar_texts(scale, row_of)
    for row, text, colour in texts:
        picture[row, _BAR_WIDTH : _BAR_WIDTH + _TICK] = INK
        put_text(picture, text, _BAR_WIDTH + _TICK + 3, min(max(row - 8, 0), height - LINE_HEIGHT), colour)
    if scale.threshold is not None:
        row = row_of(_THRESHOLD_AT)
        picture[row - 1 : row + 1, : _BAR_WIDTH + _TICK] = INK
        picture[row, :_BAR_WIDTH] = BACKGROUND
        put_text(picture, "pixel threshold", _BAR_WIDTH + _TICK + 3, min(row + 7, height - LINE_HEIGHT))
    return picture


def _bar_texts(scale: ColourScale, row_of: Callable[[float], int]) -> list[tuple[int, str, tuple[int, int, int]]]:
    """Return row, text and colour of the numbers on a bar: the threshold, and the others as far as there is room."""
    texts = []
    above, below = math.inf, -math.inf
    if scale.threshold is not None:
        row = row_of(_THRESHOLD_AT)
        texts.append((row, scale.threshold_text, INK))
        above, below = row - LINE_HEIGHT, row + 2 * LINE_HEIGHT
    last = math.inf
    for at, text in scale.ticks():
        row = row_of(at)
        if last - row >= LINE_HEIGHT and (row <= above or row >= below):
            texts.append((row, text, _SOFT))
            last = row
    return texts
