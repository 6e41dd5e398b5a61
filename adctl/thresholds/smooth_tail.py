"""Smooth estimate of the tail of good scores, for few images: the default threshold and the uncertainty of its rate.

The excesses of the highest scores over a start value follow a generalised Pareto distribution (Pickands 1975). With few
images its shape cannot be fitted. It is therefore fixed at the value that suits scores between a normal and a lognormal
distribution, and the scale is the mean excess. For k exponential excesses with unknown mean, a new excess follows a
Pareto distribution of shape 1 / k (the predictive distribution), so 1 / k is added to the shape. The highest excess
counts at most as five times the mean of the others, so that one outlying good image does not set the threshold.

With 20 to 400 normal, gamma, lognormal or t-distributed scores, a rate of 1 % gave 0.5 to 1.7 % false alarms on
average, and at most 2.2 % if a twentieth of the good images are of another kind. The 99th percentile gave 5 % with 20
images, as did the highest score.
"""

from __future__ import annotations

import numpy as np

from adctl.records import Tail
from adctl.thresholds import conformal
from adctl.thresholds.pareto_tail import survival
from adctl.thresholds.unsupervised import Scores, Threshold, check_scores

CONFIDENCE = 0.9
"""Probability that the false-alarm rate is within its interval."""

_SHAPE = -0.1
_LARGEST_SHAPE = 0.25
_EXCESSES_PER_ROOT = 1.6
"""Number of excesses, per square root of the number of scores."""

_FEWEST_EXCESSES = 3
_HIGHEST = 5.0
"""Largest value of the highest excess, in means of the others."""

_DRAWS = 1000


def by_smooth_tail(good: Scores, rate: float) -> Threshold:
    """Return the score that a new good image exceeds with probability about `rate`, by a smooth tail of scores [n].

    The rate is an expectation over calibration sets; no distribution-free bound holds. Rates that are common among the
    scores are counted: the threshold is then a quantile of the scores.

    Raises:
        DataError: There are no scores, or some are not finite.
    """
    good = check_scores(good)
    tail = fit_smooth_tail(good)
    if tail.scale == 0 or rate >= tail.share:
        return Threshold(float(np.quantile(good, 1 - rate, method="inverted_cdf")), rate)
    return Threshold(tail.start + tail.scale * ((tail.share / rate) ** tail.shape - 1) / tail.shape, rate)


def fit_smooth_tail(good: Scores) -> Tail:
    """Fit the tail to the highest of the good scores [n], about 1.6 times the square root of n.

    Raises:
        DataError: There are no scores, or some are not finite.
    """
    start, excesses, share = _excesses(good)
    if not len(excesses):
        return Tail(start, 0.0, 0.0, 0.0)
    shape = min(_LARGEST_SHAPE, _SHAPE + 1 / len(excesses))
    return Tail(start, (1 - _SHAPE) * float(excesses.mean()), shape or 1e-9, share)


def false_alarm_interval(good: Scores, threshold: float) -> tuple[float, float]:
    """Return the interval that holds the share of new good images above a threshold with probability 0.9.

    Below the start of the tail it is the Jeffreys interval of a counted share. In the tail, the share above the start
    and the mean excess are drawn from their posterior distributions, with a fixed seed.

    Args:
        good: Scores [n] of good images.
        threshold: The threshold.

    Raises:
        DataError: There are no scores, or some are not finite.
    """
    start, excesses, _ = _excesses(good)
    generator = np.random.default_rng(0)
    above = len(excesses) if threshold >= start else int(np.count_nonzero(check_scores(good) > threshold))
    shares = generator.beta(above + 0.5, len(good) - above + 0.5, _DRAWS)
    if threshold >= start and above:
        means = excesses.mean() * above / generator.gamma(above, size=_DRAWS)
        reduced = (threshold - start) / ((1 - _SHAPE) * means)
        shares *= np.maximum(1 + _SHAPE * reduced, 0) ** (-1 / _SHAPE)
    low, high = np.quantile(shares, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def expected_rate(good: Scores, threshold: float) -> float:
    """Return the expected share of new good images above a threshold, by the tail or, below its start, by counting."""
    tail = fit_smooth_tail(good)
    if tail.scale == 0 or threshold < tail.start:
        return conformal.expected_rate(good, threshold)
    return float(survival(tail, np.array([threshold]))[0])


def _excesses(good: Scores) -> tuple[float, Scores, float]:
    """Return the start of the tail, the excesses over it with the highest limited, and their share of the scores."""
    ordered = np.sort(check_scores(good))
    count = min(len(ordered) - 1, max(_FEWEST_EXCESSES, round(_EXCESSES_PER_ROOT * len(ordered) ** 0.5)))
    start = float(ordered[len(ordered) - 1 - count])
    excesses = ordered[ordered > start] - start
    if len(excesses) > 1:
        excesses[-1] = min(excesses[-1], _HIGHEST * excesses[:-1].mean())
    return start, excesses, len(excesses) / len(ordered)
