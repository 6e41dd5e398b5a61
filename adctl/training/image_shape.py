"""Choice of the size of the network's input by the shapes of the training images, read from the headers of files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from adctl.data.images import image_size
from adctl.data.loader import ArraySample
from adctl.data.roi import decode_region
from adctl.errors import ImageError
from adctl.image_sizes import SMALLEST, both_sides, side_for_images, size_for_aspect, size_text, small_defect_advice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.detectors.base import Detector, DetectorConfig
    from adctl.records import Sample

Shapes: TypeAlias = NDArray[np.int64]
"""Heights and widths [n,2] of images, pixels."""

_MAX_READ = 200
"""Number of files whose headers are read."""

_MAX_ADVISED = 20
"""Number of images whose headers are read for the advice on small defects."""

_CELL = 8
"""Side of a map cell of most detectors, pixels of the input."""

_ABOUT_SQUARE = 1.15
"""Ratio of the longer to the shorter side up to which images count as square."""

_VARYING = 1.5
"""Ratio of the 90th to the 10th percentile of the aspect ratios above which no rectangle suits the images."""

_LONGEST = 8.0
"""Largest ratio of the sides of an input; longer images are compressed, as too few cells would lie across them."""


@dataclass(frozen=True)
class ChosenSize:
    """Size of the network's input with the reason for it.

    Attributes:
        config: Settings of the detector with this size.
        reason: Reason, one line.
    """

    config: DetectorConfig
    reason: str

    def __str__(self) -> str:
        return f"{size_text(self.config.image_size)}: {self.reason}"


def choose_size(cls: type[Detector], config: DetectorConfig, samples: Sequence[Sample]) -> ChosenSize:
    """Choose the size of the input: the detector's square, or a rectangle of the images' shape and of the same area.

    Images of more than twice that size get a larger area, up to that of `Detector.largest_auto_side`.

    Args:
        cls: Class of the detector.
        config: Settings of the detector, with the default square.
        samples: Training images.
    """
    if config.tile is not None:
        return ChosenSize(config, "tiles are square.")
    if not cls.any_shape:
        return ChosenSize(config, "this detector takes square images only.")
    shapes = image_shapes(samples, config.roi)
    if not len(shapes):
        return ChosenSize(config, "the shapes of the images are unknown.")
    usual = _fit_shape(cls, config, shapes, both_sides(config.image_size)[0])
    larger = _fit_shape(cls, config, shapes, _side(cls, config, shapes))
    if larger.config.image_size == usual.config.image_size:
        return usual
    reduced, pixels = _reduction(shapes, usual.config), math.prod(larger.config.sides) / math.prod(usual.config.sides)
    reason = (
        f"{larger.reason} At {size_text(usual.config.image_size)}, which is about {pixels:.1f} times as fast "
        f"(--image-size), images would be reduced {reduced:.1f}-fold and small defects lost."
    )
    return ChosenSize(larger.config, reason)


def _side(cls: type[Detector], config: DetectorConfig, shapes: Shapes) -> int:
    """Return the side of the square whose area the input shall have, pixels."""
    height, width = np.median(shapes, 0)
    usual = both_sides(config.image_size)[0]
    return side_for_images(height, width, usual, cls.largest_auto_side or usual)


def _reduction(shapes: Shapes, config: DetectorConfig) -> float:
    """Return the ratio of the sides of images and input."""
    return float(np.median(np.sqrt(shapes.prod(1) / math.prod(config.sides))))


def _fit_shape(cls: type[Detector], config: DetectorConfig, shapes: Shapes, square: int) -> ChosenSize:
    """Return the size with the median shape of images and the area of a square; squares if the shapes vary."""
    step = cls.size_step(config)
    square = max(1, square // step) * step
    config = _resized(config, square) or config
    low, high = np.quantile(shapes[:, 1] / shapes[:, 0], [0.1, 0.9])
    if high / low > _VARYING:
        shapes_vary = f"the shapes of the images vary, from {low:.2g} to {high:.2g} times as wide as high."
        hint = "" if config.resize != "squash" else " --set resize=pad keeps their proportions, which is seldom better."
        return ChosenSize(config, shapes_vary + hint)
    height, width = np.median(shapes, 0)
    aspect = float(np.median(shapes[:, 1] / shapes[:, 0]))
    longer = max(aspect, 1 / aspect)
    seen = f"{height:.0f}x{width:.0f}, the median of {len(shapes)} images"
    if longer <= _ABOUT_SQUARE:
        return ChosenSize(config, f"the images are about square ({seen}).")
    size = size_for_aspect(min(max(aspect, 1 / _LONGEST), _LONGEST), square, step)
    fitted = _resized(config, size)
    if fitted is None:
        return ChosenSize(config, f"this detector does not take {size_text(size)}.")
    shape = f"{longer:.1f} times as {'wide as high' if aspect > 1 else 'high as wide'}"
    reason = f"the images are {shape} ({seen}); its area is that of {square}x{square}."
    if longer > _LONGEST:
        tile = max(SMALLEST, round(min(height, width)))
        reason += f" So long images are compressed: --set tile={tile} keeps their proportions."
    return ChosenSize(fitted, reason)


def _resized(config: DetectorConfig, size: int | tuple[int, int]) -> DetectorConfig | None:
    """Return the settings with another size; None if a plug-in does not allow it."""
    try:
        return type(config)(**{**config.model_dump(), "image_size": size})
    except ValidationError:
        return None


def advise_on_small_defects(config: DetectorConfig, samples: Sequence[Sample]) -> str | None:
    """Return advice if small defects may be missed, because images are much larger than the input; or None."""
    shapes = image_shapes(samples[:: max(1, len(samples) // _MAX_ADVISED)], config.roi)
    if config.tile is not None or not len(shapes):
        return None
    height, width = np.median(shapes, 0)
    return small_defect_advice(height, width, config.image_size, getattr(config, "cell", None) or _CELL)


def image_shapes(samples: Sequence[Sample], roi: str | None = None) -> Shapes:
    """Return the heights and widths [n,2] of at most 200 images, or of their regions of interest, from their headers.

    Images whose headers cannot be read are left out; they are reported when their pixels are read.
    """
    step = max(1, -(-len(samples) // _MAX_READ))
    region = None if roi is None else decode_region(roi)
    shapes = []
    for sample in samples[::step]:
        try:
            height, width = _shape(sample)
        except ImageError:
            continue
        if region is not None:
            box = region.box(height, width)
            height, width = box.height, box.width
        shapes.append((height, width))
    return np.array(shapes, np.int64).reshape(-1, 2)


def _shape(sample: Sample) -> tuple[int, int]:
    if isinstance(sample, ArraySample):
        return sample.array.shape[0], sample.array.shape[1]
    width, height = image_size(sample.path)
    return height, width
