"""Thresholds from good scores alone, without a promise for the images to come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adctl.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

Scores = NDArray[np.float64]

_MAD_TO_SIGMA = 1.4826022185056018
"""1 / Phi^-1(3/4): times the median absolute deviation, it is sigma where scores are normal."""

_FEWEST_FOR_SPREAD = 2


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it rests on.

    Attributes:
        value: In score units; what is above is called out.
        level: What was asked for or reached: percentile, number of sigmas, target rate, precision, F1, or cost.
        note: What the user should know of it, or None.
    """

    value: float
    level: float
    note: str | None = None


def by_percentile(good: Scores, percentile: float) -> Threshold:
    """The percentile of good scores [n], by linear interpolation (what numpy calls `linear`).

    Of n + 1 exchangeable scores the last is above it more often than 1 - percentile / 100 says, the more so the
    smaller n: see `conformal` for the threshold that keeps the promise.

    Raises:
        DataError: There are no scores, or some are not finite.
    """
    return Threshold(float(np.percentile(check_scores(good), percentile)), percentile)


def by_sigma(good: Scores, sigmas: float) -> Threshold:
    """Mean + k standard deviations (n - 1 in the denominator) of good scores [n].

    Raises:
        DataError: There are fewer than two scores, or some are not finite.
    """
    good = check_scores(good, fewest=_FEWEST_FOR_SPREAD)
    return Threshold(float(good.mean() + sigmas * good.std(ddof=1)), sigmas)


def by_mad(good: Scores, sigmas: float) -> Threshold:
    """Median + k robust standard deviations of good scores [n]: a few strange images do not move it.

    The median absolute deviation times 1.4826 stands for sigma (Rousseeuw & Croux 1993, section 1).

    Raises:
        DataError: There are fewer than two scores, or some are not finite.
    """
    good = check_scores(good, fewest=_FEWEST_FOR_SPREAD)
    middle = np.median(good)
    spread = _MAD_TO_SIGMA * np.median(np.abs(good - middle))
    return Threshold(float(middle + sigmas * spread), sigmas)


def check_scores(scores: Scores | Iterable[float], *, fewest: int = 1, kind: str = "good") -> Scores:
    """Scores [n] as float64, of which there are enough and none is NaN or infinite.

    Raises:
        DataError: There are fewer than `fewest` scores, or some are not finite.
    """
    values = np.asarray(scores if isinstance(scores, np.ndarray) else list(scores), dtype=np.float64)
    if len(values) < fewest:
        having = f"{len(values)} {kind} images" if len(values) else f"no scores of {kind} images"
        flag = "--good" if kind == "good" else "--defects"
        raise DataError(
            f"There are {having} to calibrate on; this takes at least {fewest}.", f"Give {kind} images with {flag} DIR."
        )
    broken = int(np.count_nonzero(~np.isfinite(values)))
    if broken:
        raise DataError(
            f"{broken} of {len(values)} scores of {kind} images are not finite numbers.",
            "Look for broken images among them, or train the model again.",
        )
    return values
