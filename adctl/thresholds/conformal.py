"""Thresholds with a promise, and p-values: conformal prediction on scores of good images.

If the scores of n held-out good images and of a new good one are exchangeable, the rank of the new one among the
n + 1 is uniform. So its p-value is at most alpha with probability at most alpha, at every n, whatever the scores'
distribution (Vovk, Gammerman & Shafer 2005; Angelopoulos & Bates 2023, section 1; for anomaly detection Bates et
al. 2023). The promise is on average over calibration sets; it needs the model not to have learned from the n.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from adctl.thresholds.unsupervised import Scores, Threshold, check_scores

_LARGEST_DENOMINATOR = 10**9


def by_false_alarm(good: Scores, rate: float) -> Threshold:
    """The smallest threshold that a new good image exceeds with probability at most `rate`.

    It is the k-th smallest of n scores [n], k = ceil((n + 1)(1 - rate)). With too few images no threshold can promise
    the rate; then it is the highest score, and the note says what that promises and how many images are needed.

    Raises:
        DataError: There are no scores, or some are not finite.
    """
    ordered = np.sort(check_scores(good))
    count = len(ordered)
    alarms = math.floor((count + 1) * _exactly(rate))  # of n + 1 ranks, those that are called out
    if alarms >= 1:
        return Threshold(float(ordered[count - alarms]), rate)
    note = (
        f"{count} good images cannot promise a false-alarm rate of {rate:g}: that takes {images_needed(rate)}. "
        f"The threshold is their highest score, which promises {1 / (count + 1):.3g}."
    )
    return Threshold(float(ordered[-1]), rate, note)


def images_needed(rate: float) -> int:
    """The fewest good images that can promise a false-alarm rate."""
    return math.ceil(1 / _exactly(rate)) - 1


def guaranteed_rate(count: int, rate: float) -> float:
    """The false-alarm rate that the threshold for `rate` keeps with `count` good images: at most `rate` if it can."""
    return max(1, math.floor((count + 1) * _exactly(rate))) / (count + 1)


def expected_rate(good: Scores, threshold: float) -> float:
    """The share of new good images above any threshold, from good scores [n]: k above it give (k + 1) / (n + 1)."""
    return (int(np.count_nonzero(good > threshold)) + 1) / (len(good) + 1)


def p_values(good: Scores, scores: Scores) -> Scores:
    """Conformal p-values [m] of scores [m] against good scores [n]: (1 + number not below) / (n + 1).

    For every rate alpha that n images can promise, a p-value is at most alpha exactly where the score is above the
    threshold of `by_false_alarm`.
    """
    not_below = len(good) - np.searchsorted(np.sort(good), scores, side="left")
    return np.asarray((1 + not_below) / (len(good) + 1), dtype=np.float64)


def _exactly(rate: float) -> Fraction:
    """The decimal number that was typed: 0.01 is a hundredth, so that 99 images are enough for it."""
    return Fraction(rate).limit_denominator(_LARGEST_DENOMINATOR)
