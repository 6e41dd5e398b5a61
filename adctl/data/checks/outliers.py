"""Detection of images with unusual exposure, mode or size."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from adctl.data.checks.findings import Finding, FindingCase, make_finding
from adctl.data.colours import describe_colours
from adctl.data.depth import describe_depth
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from adctl.data.checks.image_stats import ImageStats

FENCE = 3.0
"""Distance beyond the quartiles, in interquartile ranges, of an outlier (Tukey, Exploratory Data Analysis, 1977)."""

_MIN_IMAGES = 8
"""Minimum number of images for quartiles."""

_MAJORITY = 0.9
"""Share of the images that must have the same mode or size; only then are the others outliers."""

_MEASURES: tuple[tuple[str, Callable[[ImageStats], float], float], ...] = (
    ("brightness", lambda image: image.brightness, 2.0),
    ("log contrast", lambda image: math.log1p(image.contrast), 0.1),
)
"""Name, function and minimum interquartile range of each measure; stable lighting would make the range too small."""


def find_exposure_outliers(stats: Sequence[ImageStats]) -> list[Finding]:
    """Find good images with unusual brightness or contrast.

    Args:
        stats: Statistics of the readable images.
    """
    good = [image for image in stats if image.sample.label == GOOD]
    if len(good) < _MIN_IMAGES:
        return []
    cases: dict[ImageStats, list[str]] = {}
    for name, measure, minimum in _MEASURES:
        values = np.array([measure(image) for image in good])
        low, high = _fences(values, minimum)
        for image, measured in zip(good, values, strict=True):
            if not low <= measured <= high:
                cases.setdefault(image, []).append(f"{name} {measured:.3g}, expected {max(0, low):.3g} to {high:.3g}")
    found = [FindingCase((image.sample.path,), "; ".join(details)) for image, details in cases.items()]
    return make_finding("odd-exposure", found)


def find_unused_bits(stats: Sequence[ImageStats]) -> list[Finding]:
    """Find 16-bit images that use only their lower bits, all of one bit depth together."""
    deep = [image for image in stats if image.peak is not None]
    problem = describe_depth((image.peak or 0 for image in deep), 16)
    return make_finding("unused-bits", [FindingCase((deep[0].sample.path.parent,), problem)] if problem else [])


def find_colour_profiles(stats: Sequence[ImageStats]) -> list[Finding]:
    """Find images whose profile or gamma differs from sRGB, if there are any, all of one profile together."""
    problem = describe_colours(image.colours for image in stats)
    first = next((image for image in stats if image.colours), None)
    return make_finding("colour-profile", [FindingCase((first.sample.path,), problem)] if first and problem else [])


def find_mode_outliers(stats: Sequence[ImageStats]) -> list[Finding]:
    """Find images that differ from the common mode, if nearly all images have one mode."""
    return make_finding("odd-mode", _minority(stats, lambda image: image.mode))


def find_size_outliers(stats: Sequence[ImageStats]) -> list[Finding]:
    """Find images that differ from the common size, if nearly all images have one size."""
    return make_finding("odd-size", _minority(stats, lambda image: f"{image.width} x {image.height}"))


def _fences(values: NDArray[np.float64], minimum: float) -> tuple[float, float]:
    """Return the lower and upper limit beyond which a value is an outlier."""
    first, third = np.quantile(values, [0.25, 0.75])
    distance = FENCE * max(third - first, minimum)
    return float(first - distance), float(third + distance)


def _minority(stats: Sequence[ImageStats], measure: Callable[[ImageStats], str]) -> list[FindingCase]:
    if not stats:
        return []
    common, count = Counter(map(measure, stats)).most_common(1)[0]
    if count < _MAJORITY * len(stats):
        return []
    return [
        FindingCase((image.sample.path,), f"{measure(image)}; {count} other images: {common}")
        for image in stats
        if measure(image) != common
    ]
