"""Generalised Pareto model of the highest good scores, and thresholds from it.

Peaks over threshold (Pickands 1975; Coles 2001, chapter 4): the excesses of scores over a high start value follow a
generalised Pareto distribution. Unlike a percentile, the model reaches beyond the highest score seen, but it is only
as good as its fit.
"""

from __future__ import annotations

import numpy as np

from adctl.records import Tail
from adctl.thresholds.unsupervised import Scores, Threshold, check_scores

_TAIL_SHARE = 0.15
"""Share of the good scores that the tail is fitted to."""

_FEWEST_EXCESSES = 10
"""Smallest number of excesses for fitting two parameters; with fewer, the tail is exponential (shape 0)."""

_FEWEST_GOOD = 20
_SHAPES = (-0.5, 0.5)
"""Limits of the shape. Outside them the estimate is unreliable (Coles 2001, section 4.3.2) and implausible here."""


def fit_tail(good: Scores) -> Tail:
    """Fit the excesses of the highest 15 % of good scores [n] by maximum likelihood.

    Raises:
        DataError: There are no scores, or some are not finite.
    """
    ordered = np.sort(check_scores(good))
    count = max(1, round(_TAIL_SHARE * len(ordered)))
    start = float(ordered[-count - 1]) if count < len(ordered) else float(ordered[0])
    excesses = ordered[ordered > start] - start
    share = len(excesses) / len(ordered)
    if len(excesses) == 0:  # no score is above the start, for example because all are equal
        return Tail(start, 0.0, 0.0, 0.0)
    shape, scale = 0.0, float(excesses.mean())
    if len(excesses) >= _FEWEST_EXCESSES:
        shape, scale = _fit(excesses)
    return Tail(start, scale, shape, share)


def _fit(excesses: Scores) -> tuple[float, float]:
    """Return shape and scale; if the shape had to be limited, the scale is fitted again with that shape."""
    from scipy.stats import genpareto

    unit = float(excesses.mean())  # the optimizer fails on scores of about 1e-9 or 1e9
    shape, _, scale = genpareto.fit(excesses / unit, floc=0)
    limited = float(np.clip(shape, *_SHAPES))
    if limited != shape:
        _, _, scale = genpareto.fit(excesses / unit, floc=0, f0=limited)
    return limited, float(scale) * unit


def survival(tail: Tail, scores: Scores) -> Scores:
    """Return the probability [m] that a good image scores above each score [m]; scores must not be below the start."""
    if tail.scale <= 0:
        return np.where(scores > tail.start, 0.0, tail.share)
    reduced = np.maximum(scores - tail.start, 0) / tail.scale
    if tail.shape == 0:
        return np.asarray(tail.share * np.exp(-reduced))
    base = np.maximum(1 + tail.shape * reduced, 0)
    with np.errstate(divide="ignore"):
        return np.asarray(tail.share * np.where(base > 0, base ** (-1 / tail.shape), 0.0))


def by_tail(good: Scores, rate: float) -> Threshold:
    """Return the score that a good image exceeds with probability `rate`, by the tail fitted to good scores [n].

    Raises:
        DataError: There are fewer than 20 scores, or some are not finite.
    """
    good = check_scores(good, fewest=_FEWEST_GOOD)
    tail = fit_tail(good)
    if rate >= tail.share:  # below the start of the tail there are enough scores to count
        return Threshold(float(np.quantile(good, 1 - rate)), rate)
    ratio = tail.share / rate
    excess = np.log(ratio) if tail.shape == 0 else (ratio**tail.shape - 1) / tail.shape
    note = None
    if rate * len(good) < 1:
        note = f"A rate of {rate:g} is below 1 in {len(good)} good images: the threshold extrapolates the fitted tail."
    return Threshold(tail.start + tail.scale * float(excess), rate, note)
