"""The tail of good scores: excesses over a high threshold follow a generalised Pareto distribution.

Peaks over threshold (Pickands 1975; Coles 2001, chapter 4): it reaches beyond the highest score seen, which no
percentile does, at the price of trusting a model. Knows numbers only.
"""

from __future__ import annotations

import numpy as np

from adctl.records import Tail
from adctl.thresholds.unsupervised import Scores, Threshold, check_scores

_SHARE = 0.15
"""Of the good scores, taken for the tail."""

_FEWEST = 10
"""Excesses to fit two parameters to; with fewer the tail is taken to be exponential."""

_FEWEST_GOOD = 20
_SHAPES = (-0.5, 0.5)
"""Outside of these the estimate is not to be trusted (Coles 2001, section 4.3.2), nor plausible for scores."""


def fit_tail(good: Scores) -> Tail:
    """Fit the excesses of the highest 15 % of good scores [n] by maximum likelihood.

    Raises:
        DataError: There are no scores, or some are not finite.
    """
    ordered = np.sort(check_scores(good))
    count = max(1, round(_SHARE * len(ordered)))
    start = float(ordered[-count - 1]) if count < len(ordered) else float(ordered[0])
    excesses = ordered[ordered > start] - start
    share = len(excesses) / len(ordered)
    if len(excesses) == 0:  # all scores are the same
        return Tail(start, 0.0, 0.0, 0.0)
    shape, scale = 0.0, float(excesses.mean())
    if len(excesses) >= _FEWEST:
        shape, scale = _fit(excesses)
    return Tail(start, scale, shape, share)


def _fit(excesses: Scores) -> tuple[float, float]:
    """Shape and scale; the scale again where the shape had to be brought to what is plausible."""
    from scipy.stats import genpareto

    unit = float(excesses.mean())  # scores may be 1e-9 or 1e9: the optimizer likes neither
    shape, _, scale = genpareto.fit(excesses / unit, floc=0)
    bounded = float(np.clip(shape, *_SHAPES))
    if bounded != shape:
        _, _, scale = genpareto.fit(excesses / unit, floc=0, f0=bounded)
    return bounded, float(scale) * unit


def survival(tail: Tail, scores: Scores) -> Scores:
    """The probability [m] that a good image scores above each score [m], none of them below the tail's start."""
    if tail.scale <= 0:
        return np.where(scores > tail.start, 0.0, tail.share)
    reduced = np.maximum(scores - tail.start, 0) / tail.scale
    if tail.shape == 0:
        return np.asarray(tail.share * np.exp(-reduced))
    base = np.maximum(1 + tail.shape * reduced, 0)
    with np.errstate(divide="ignore"):
        return np.asarray(tail.share * np.where(base > 0, base ** (-1 / tail.shape), 0.0))


def by_tail(good: Scores, rate: float) -> Threshold:
    """The score that a good image exceeds with probability `rate`, by the fitted tail of good scores [n].

    Raises:
        DataError: There are fewer than 20 scores, or some are not finite.
    """
    good = check_scores(good, fewest=_FEWEST_GOOD)
    tail = fit_tail(good)
    if rate >= tail.share:  # within the body the scores speak for themselves
        return Threshold(float(np.quantile(good, 1 - rate)), rate)
    ratio = tail.share / rate
    excess = np.log(ratio) if tail.shape == 0 else (ratio**tail.shape - 1) / tail.shape
    note = None
    if rate * len(good) < 1:
        note = f"A rate of {rate:g} lies beyond {len(good)} good images: it rests on the fitted tail, not on counting."
    return Threshold(tail.start + tail.scale * float(excess), rate, note)
