"""Thresholds from the first parts of a line: unlabelled, mostly good, at most a stated share defective. Arrays only.

Of N parts at most m = ceil(share x N) are defective, with any scores. The good ones and a new good part are
exchangeable. If a new good part scores above the r-th highest of the N scores, fewer than r of the good scores are as
high as its own, so its rank among the n + 1 >= N - m + 1 good scores is at most r. This happens with probability at
most r / (N - m + 1), for every distribution of good scores and whatever the defective parts score. Without
contamination it is the bound of `conformal`.

Defective parts cannot spoil this promise, but they can hide: with r <= m the threshold may be the score of a defective
part. So there are two methods:

- `conformal` promises a given rate: r = floor(rate x (N - m + 1)). If r <= m, a note says so.
- `trimmed`, the default, aims at a rate. It leaves out the m highest scores, fits an exponential tail to the others,
  takes back in, from below, those of the m that good parts are likely to give, and takes the quantile of the tail. The
  threshold stays between the (m + r)-th and the r-th highest score, so that it promises (m + r) / (N - m + 1).
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from adctl.errors import DataError
from adctl.thresholds.unsupervised import Scores, Threshold, check_scores

METHOD = "trimmed"

SHARE = 0.05
"""Largest share of defective parts if none is given."""

FEWEST_PARTS = 20
"""Smallest number of parts for a threshold."""

_TAIL = 0.3
"""Share of the likely good scores that gives the tail."""

_UNLIKELY = 0.01
"""Probability of as many higher scores below which these are no longer likely to be of good parts."""

_BISECTIONS = 40

_LARGEST_DENOMINATOR = 10**9


def defective_parts(count: int, contaminated: float) -> int:
    """Return the largest number of defective parts among `count`."""
    return math.ceil(_fraction(contaminated) * count)


def promised_rate(method: str, count: int, contaminated: float, rate: float) -> float:
    """Return the bound on the false-alarm rate of a method, `conformal` or `trimmed`; it holds for any defects."""
    trimmed = defective_parts(count, contaminated)
    rank = _rank(count, trimmed, rate) + (trimmed if method == METHOD else 0)
    return min(1.0, rank / (count - trimmed + 1))


def parts_needed(rate: float, contaminated: float) -> int:
    """Return the smallest number of parts that can promise a false-alarm rate by `conformal`."""
    count = math.ceil(1 / _fraction(rate)) - 1
    while (count - defective_parts(count, contaminated) + 1) * _fraction(rate) < 1:
        count += 1
    return count


def by_false_alarm(scores: Scores, rate: float, contaminated: float) -> Threshold:
    """Return a threshold that a new good part exceeds with probability at most `rate`, whatever the defects score.

    With too few parts the threshold is the highest score; its level is the rate that this promises.

    Args:
        scores: Scores of the parts [n].
        rate: False-alarm rate, 0 to 1.
        contaminated: Largest share of defective parts, 0 to 1.

    Raises:
        DataError: There are too few scores, or some are not finite.
    """
    ordered = _check(scores)
    count, trimmed = len(ordered), defective_parts(len(ordered), contaminated)
    rank = _rank(count, trimmed, rate)
    value, promised = float(ordered[count - rank]), promised_rate("conformal", count, contaminated, rate)
    notes = []
    if promised > rate:
        notes.append(
            f"{count} parts of which up to {trimmed} are defective cannot guarantee a false-alarm rate of {rate:g}: "
            f"that needs {parts_needed(rate, contaminated)}. The threshold is the highest score, which guarantees "
            f"{promised:.3g}."
        )
    if rank <= trimmed:
        notes.append(
            f"Up to {trimmed} parts may be defective, and the threshold is the score of one of the {trimmed} highest: "
            "defects may pass. Look at these parts, remove the defective ones, and calibrate with --contaminated 0."
        )
    return Threshold(value, max(rate, promised), " ".join(notes) or None)


def by_trimmed_tail(scores: Scores, rate: float, contaminated: float) -> Threshold:
    """Return a threshold that a new good part exceeds with probability about `rate`; see the module's docstring.

    Args:
        scores: Scores of the parts [n].
        rate: False-alarm rate to aim at, 0 to 1.
        contaminated: Largest share of defective parts, 0 to 1.

    Raises:
        DataError: There are too few scores, some are not finite, or the share is too large for a threshold.
    """
    ordered = _check(scores)
    count, trimmed = len(ordered), defective_parts(len(ordered), contaminated)
    promised = promised_rate(METHOD, count, contaminated, rate)
    if promised >= 0.5:  # noqa: PLR2004 - half of the parts
        raise DataError(
            f"With up to {trimmed} defective of {count} parts the false alarms could be {100 * promised:.0f} %.",
            "Remove the defective parts and lower --contaminated, or take more parts.",
        )
    rank = _rank(count, trimmed, rate)
    lowest, highest = ordered[count - trimmed - rank], ordered[count - rank]
    tail = _tail_quantile(ordered, trimmed, rate)
    return Threshold(float(np.clip(tail, lowest, highest)), rate)


def p_values(parts: Scores, scores: Scores, contaminated: float) -> Scores:
    """Return p-values [m] of scores [m] that hold whatever the defective ones among the parts [n] score."""
    not_lower = len(parts) - np.searchsorted(np.sort(parts), scores, side="left")
    good = len(parts) - defective_parts(len(parts), contaminated)
    return np.asarray(np.minimum(1.0, (1 + not_lower) / (good + 1)), dtype=np.float64)


def without_highest(values: tuple[float, ...], contaminated: float) -> tuple[float, ...]:
    """Return ascending values without those that may be of defective parts."""
    return values[: len(values) - defective_parts(len(values), contaminated)]


def _tail_quantile(ordered: Scores, trimmed: int, rate: float) -> float:
    """Return the score that a share `rate` of good parts exceeds, by an exponential tail of the likely good scores."""
    count = len(ordered)
    kept = count - trimmed
    while kept < count and _likely_good(ordered[:kept], float(ordered[kept]), count - kept):
        kept += 1
    start, scale, share = _tail(ordered[:kept], truncated=False)
    return start + scale * max(0.0, math.log(share / rate))


def _likely_good(lower: Scores, next_score: float, higher: int) -> bool:
    """Return whether good parts are likely to give so many scores from the next one on, by the tail of those below it.

    Args:
        lower: Likely good scores, ascending.
        next_score: Lowest of the other scores.
        higher: Number of the other scores.
    """
    start, scale, share = _tail(lower, truncated=True)
    if scale == 0:
        return next_score == start
    expected = share * len(lower) * math.exp(-(next_score - start) / scale)
    fewer = sum(math.exp(-expected) * expected**number / math.factorial(number) for number in range(higher))
    return 1 - fewer >= _UNLIKELY


def _tail(ordered: Scores, *, truncated: bool) -> tuple[float, float, float]:
    """Fit an exponential tail to the highest of ascending scores.

    Args:
        ordered: The scores.
        truncated: Whether higher good scores may be missing; the fit is then that of a truncated distribution.

    Returns:
        Start and scale of the tail, and its share of the good scores, the missing ones included.
    """
    observed = math.ceil(_TAIL * len(ordered))
    start = float(ordered[-observed - 1])
    mean, width = float(np.mean(ordered[-observed:])) - start, float(ordered[-1]) - start
    share = observed / len(ordered)
    if not truncated or mean == 0:
        return start, mean, share
    scale = _truncated_scale(mean, width)
    return start, scale, share / (1 - math.exp(-width / scale))


def _truncated_scale(mean: float, width: float) -> float:
    """Return the scale of an exponential distribution that is cut off at `width` and has this mean; `width` at most."""
    low, high = mean, width
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if middle - width / math.expm1(width / middle) < mean:
            low = middle
        else:
            high = middle
    return high


def _rank(count: int, trimmed: int, rate: float) -> int:
    return max(1, math.floor((count - trimmed + 1) * _fraction(rate)))


def _check(scores: Scores) -> Scores:
    if len(scores) < FEWEST_PARTS:
        raise DataError(
            f"{len(scores)} parts are too few to commission a line.",
            f"Take at least {FEWEST_PARTS}; 100 or more are better.",
        )
    return np.sort(check_scores(scores))


def _fraction(value: float) -> Fraction:
    """Return the decimal number the user typed: 0.05 is exactly 1/20."""
    return Fraction(value).limit_denominator(_LARGEST_DENOMINATOR)
