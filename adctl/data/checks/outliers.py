"""Images unlike the others: in exposure, mode or size. Knows looks, nothing of folders."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from adctl.data.checks.findings import Finding, FindingCase, make_finding
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from adctl.data.checks.image_stats import ImageStats

FENCE = 3.0
"""Interquartile ranges beyond the quartiles at which a value is far out (Tukey, Exploratory Data Analysis, 1977)."""

_FEWEST = 8
"""Images from which quartiles mean something."""

_USUAL = 0.9
"""Share of the images that must agree for the others to be odd."""

_MEASURES: tuple[tuple[str, Callable[[ImageStats], float], float], ...] = (
    ("brightness", lambda look: look.brightness, 2.0),
    ("log contrast", lambda look: math.log1p(look.contrast), 0.1),
)
"""What is measured, and the interquartile range that smaller ones count as, lest a steady lamp make outliers of all."""


def find_exposure_outliers(looks: Sequence[ImageStats]) -> list[Finding]:
    """Good images far brighter, darker, flatter or harsher than the others.

    Args:
        looks: At readable images.
    """
    good = [look for look in looks if look.sample.label == GOOD]
    if len(good) < _FEWEST:
        return []
    cases: dict[ImageStats, list[str]] = {}
    for name, measure, least in _MEASURES:
        values = np.array([measure(look) for look in good])
        low, high = _fences(values, least)
        for look, measured in zip(good, values, strict=True):
            if not low <= measured <= high:
                cases.setdefault(look, []).append(f"{name} {measured:.3g}, expected {max(0, low):.3g} to {high:.3g}")
    return make_finding(
        "odd-exposure", [FindingCase((look.sample.path,), "; ".join(seen)) for look, seen in cases.items()]
    )


def find_mode_outliers(looks: Sequence[ImageStats]) -> list[Finding]:
    """Images in another mode than nearly all."""
    return make_finding("odd-mode", _unusual(looks, lambda look: look.mode))


def find_size_outliers(looks: Sequence[ImageStats]) -> list[Finding]:
    """Images of another size than nearly all; where sizes vary anyway, none."""
    return make_finding("odd-size", _unusual(looks, lambda look: f"{look.width} x {look.height}"))


def _fences(values: NDArray[np.float64], least: float) -> tuple[float, float]:
    """Between what all but the far-out values lie."""
    first, third = np.quantile(values, [0.25, 0.75])
    reach = FENCE * max(third - first, least)
    return float(first - reach), float(third + reach)


def _unusual(looks: Sequence[ImageStats], what: Callable[[ImageStats], str]) -> list[FindingCase]:
    if not looks:
        return []
    usual, count = Counter(map(what, looks)).most_common(1)[0]
    if count < _USUAL * len(looks):
        return []
    return [
        FindingCase((look.sample.path,), f"{what(look)}, not {usual} like {count} others")
        for look in looks
        if what(look) != usual
    ]
