"""Thresholds from good scores alone: percentile, mean + k sigma, median + k MAD. They guarantee no false-alarm rate."""

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
"""1 / Phi^-1(3/4). The median absolute deviation times this estimates sigma when scores are normally distributed."""

_FEWEST_FOR_SPREAD = 2


@dataclass(frozen=True)
class Threshold:
    """A threshold and how it was chosen.

    Attributes:
        value: Threshold in score units; scores above it are anomalous.
        level: The requested percentile, number of sigmas, false-alarm rate, precision or recall; for `f1` and `cost`,
            the best value reached.
        note: Warning for the user, or None.
    """

    value: float
    level: float
    note: str | None = None


def by_percentile(good: Scores, percentile: float) -> Threshold:
    """Return the percentile of good scores [n], with linear interpolation (numpy's default method).

    A new good score is above it more often than 1 - percentile / 100, most clearly when n is small. The thresholds of
    `conformal` do not have this bias.

    Raises:
        DataError: There are no scores, or some are not finite.
    """
    return Threshold(float(np.percentile(check_scores(good), percentile)), percentile)


def by_sigma(good: Scores, sigmas: float) -> Threshold:
    """Return mean + k standard deviations of good scores [n], where k is `sigmas` (n - 1 in the denominator).

    Raises:
        DataError: There are fewer than two scores, or some are not finite.
    """
    good = check_scores(good, fewest=_FEWEST_FOR_SPREAD)
    return Threshold(float(good.mean() + sigmas * good.std(ddof=1)), sigmas)


def by_mad(good: Scores, sigmas: float) -> Threshold:
    """Return median + k robust standard deviations of good scores [n], where k is `sigmas`; outliers hardly move it.

    The robust standard deviation is 1.4826 times the median absolute deviation (Rousseeuw & Croux 1993, section 1).

    Raises:
        DataError: There are fewer than two scores, or some are not finite.
    """
    good = check_scores(good, fewest=_FEWEST_FOR_SPREAD)
    middle = np.median(good)
    spread = _MAD_TO_SIGMA * np.median(np.abs(good - middle))
    return Threshold(float(middle + sigmas * spread), sigmas)


def check_scores(scores: Scores | Iterable[float], *, fewest: int = 1, kind: str = "good") -> Scores:
    """Return scores [n] as float64 after checking their number and that all are finite.

    Args:
        scores: Raw scores [n].
        fewest: Smallest number of scores that is accepted.
        kind: Word for these images in error messages: `good` or `defective`.

    Raises:
        DataError: There are fewer than `fewest` scores, or some are not finite.
    """
    values = np.asarray(scores if isinstance(scores, np.ndarray) else list(scores), dtype=np.float64)
    if len(values) < fewest:
        flag = "--good" if kind == "good" else "--defects"
        raise DataError(
            f"Calibration has too few scores of {kind} images: {len(values)}, but it needs at least {fewest}.",
            f"Give {kind} images with {flag} DIR.",
        )
    broken = int(np.count_nonzero(~np.isfinite(values)))
    if broken:
        raise DataError(
            f"{broken} of {len(values)} scores of {kind} images are not finite numbers.",
            "Remove damaged images, or train the model again.",
        )
    return values
