"""Thresholds with a guaranteed false-alarm rate, and p-values: conformal prediction on scores of good images.

If the scores of n held-out good images and of a new good image are exchangeable, the rank of the new score among the
n + 1 is uniform. Its p-value is therefore at most alpha with probability at most alpha, for every n and every
distribution of scores (Vovk, Gammerman & Shafer 2005; Angelopoulos & Bates 2023, section 1; for anomaly detection Bates
et al. 2023). The guarantee holds on average over calibration sets, and only if the model was not trained on the n
images. For scores out of fold `cross_conformal_bound` gives a weaker guarantee.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from adctl.thresholds.unsupervised import Scores, Threshold, check_scores

_LARGEST_DENOMINATOR = 10**9


def by_false_alarm(good: Scores, rate: float) -> Threshold:
    """Return the smallest threshold that a new good image exceeds with probability at most `rate`.

    It is the k-th smallest of the scores [n], k = ceil((n + 1)(1 - rate)). With too few images no threshold guarantees
    the rate. The threshold is then the highest score, its level is the rate that this guarantees, and its note gives
    the number of images needed.

    Raises:
        DataError: There are no scores, or some are not finite.
    """
    ordered = np.sort(check_scores(good))
    count = len(ordered)
    rejected_ranks = math.floor((count + 1) * _as_fraction(rate))  # of the n + 1 ranks of a new score
    if rejected_ranks >= 1:
        return Threshold(float(ordered[count - rejected_ranks]), rate)
    note = (
        f"{count} good images cannot guarantee a false-alarm rate of {rate:g}: that needs {images_needed(rate)}. "
        f"The threshold is the highest good score, which guarantees {1 / (count + 1):.3g}."
    )
    return Threshold(float(ordered[-1]), 1 / (count + 1), note)


def images_needed(rate: float) -> int:
    """Return the smallest number of good images that can guarantee a false-alarm rate."""
    return math.ceil(1 / _as_fraction(rate)) - 1


def guaranteed_rate(count: int, rate: float) -> float:
    """Return the rate that `by_false_alarm` guarantees with `count` images: above `rate` if they are too few."""
    return max(1, math.floor((count + 1) * _as_fraction(rate))) / (count + 1)


def cross_conformal_bound(rate: float, count: int, folds: int) -> float:
    """Return the bound on the false-alarm rate if the threshold guarantees `rate` for held-out scores.

    The scores are out of fold: each of `count` images was scored by a model fitted on the other folds. The bound is
    that of CV+ (Barber, Candes, Ramdas & Tibshirani, "Predictive inference with the jackknife+", 2021, theorem 4):
    twice the rate, plus a term below sqrt(2 / count) that is 0 with one image in each fold. CV+ compares a new image
    with the models of all folds. For the one model that learned from all images the bound holds if learning from more
    good images does not raise the score of a good image, as with nearest neighbours. Usually the rate itself is met.
    """
    excess = min(2 * (1 - 1 / folds) / (count / folds + 1), (1 - folds / count) / (folds + 1))
    return min(1.0, 2 * rate + max(0.0, excess))


def expected_rate(good: Scores, threshold: float) -> float:
    """Return the expected share of new good images above a threshold: (k + 1) / (n + 1) if k of n scores are above."""
    return (int(np.count_nonzero(good > threshold)) + 1) / (len(good) + 1)


def p_values(good: Scores, scores: Scores) -> Scores:
    """Return conformal p-values [m] of scores [m]: (1 + number of good scores [n] that are not lower) / (n + 1).

    For every rate alpha that n images can guarantee, the p-value is at most alpha exactly when the score is above the
    threshold of `by_false_alarm`.
    """
    not_lower = len(good) - np.searchsorted(np.sort(good), scores, side="left")
    return np.asarray((1 + not_lower) / (len(good) + 1), dtype=np.float64)


def _as_fraction(rate: float) -> Fraction:
    """Return the decimal number the user typed: 0.01 is exactly 1/100, so that 99 images are enough for it."""
    return Fraction(rate).limit_denominator(_LARGEST_DENOMINATOR)
