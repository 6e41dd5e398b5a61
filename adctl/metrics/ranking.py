"""Ranking metrics from counts, for any number of resamplings at once.

Counts stand along the last axis, one for each level in ascending order; a level is a distinct value, or a bin of
values. Leading axes are resamplings. Counts may be weights. Where one of the classes is absent a metric is NaN.
Within a level nothing is ranked: where levels are distinct values the metrics are exact, where they are bins
`errors` bounds how far off they can be. Knows nothing of where counts come from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from adctl.metrics.labels import Floats


def counts_above(counts: Floats) -> Floats:
    """How many are called anomalous as the threshold comes down level by level: [...,k] to [...,k+1], from 0 on."""
    down = np.cumsum(counts[..., ::-1], axis=-1, dtype=np.float64)
    return np.concatenate([np.zeros_like(down[..., :1]), down], axis=-1)


def rates_above(counts: Floats) -> Floats:
    """The same as a share of all: [...,k] to [...,k+1], from 0 to 1."""
    numbers = counts_above(counts)
    return ratio(numbers, numbers[..., -1:])


def ratio(part: Floats, whole: Floats) -> Floats:
    """Part of whole, element by element; NaN where there is no whole."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    result: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return result


def auroc(normal: Floats, defective: Floats) -> Floats:
    """Area under the ROC curve: the chance that a defective one ranks above a normal one, ties counting half.

    Hanley and McNeil, "The meaning and use of the area under a ROC curve", Radiology 143, 1982.
    """
    true, false = counts_above(defective), counts_above(normal)
    # Of numbers, not of rates: whole ones add up exactly, and perfect is 1.
    return ratio(np.asarray(np.trapezoid(true, false, axis=-1)), true[..., -1] * false[..., -1])


def average_precision(normal: Floats, defective: Floats) -> Floats:
    """Sum over levels of precision times the step in recall (no interpolation), as scikit-learn defines it."""
    true = counts_above(defective)
    precision = ratio(true, true + counts_above(normal))[..., 1:]
    return np.asarray(ratio(np.nansum(np.diff(true) * precision, axis=-1), true[..., -1]))


def f1_by_level(normal: Floats, defective: Floats) -> Floats:
    """F1, which is Dice, when each level and all above it are called: [...,k], ascending like the counts."""
    true, false = counts_above(defective), counts_above(normal)
    values = ratio(2 * true, true[..., -1:] + true + false)
    return np.asarray(values[..., :0:-1])


def fpr_at_tpr(normal: Floats, defective: Floats, tpr: float = 0.95) -> Floats:
    """False-positive rate at the highest threshold whose recall reaches `tpr`."""
    reached = np.argmax(rates_above(defective) >= tpr, axis=-1)[..., None]
    return np.asarray(np.take_along_axis(rates_above(normal), reached, axis=-1)[..., 0])


def aupro(normal: Floats, overlap: Floats, regions: Floats, limit: float) -> Floats:
    """Area under the per-region overlap curve for false-positive rates up to `limit`, divided by `limit`.

    Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 129, 2021, section 5.2, doi:10.1007/s11263-020-01400-4.

    Args:
        normal: Normal pixels of each level.
        overlap: The sum over the defective pixels of each level of 1 / area of their region.
        regions: Number of regions [...].
        limit: In (0, 1]; the piece of the curve that it cuts is interpolated.
    """
    height = ratio(counts_above(overlap), regions[..., None])
    rate = rates_above(normal)
    width, rise = np.diff(rate), np.diff(height)
    kept = np.clip(limit - rate[..., :-1], 0.0, width)
    cut = np.divide(kept, width, out=np.zeros_like(kept), where=width > 0)
    # Shares of areas that are no powers of two do not quite add up to 1.
    return np.asarray(np.minimum((kept * (height[..., :-1] + rise * cut / 2)).sum(axis=-1) / limit, 1.0))


def auroc_error(normal: Floats, defective: Floats) -> Floats:
    """The most `auroc` can be off for bins: half the share of pairs of which both fell into one bin."""
    return np.asarray((np.diff(rates_above(normal)) * np.diff(rates_above(defective))).sum(axis=-1) / 2)


def average_precision_error(normal: Floats, defective: Floats) -> Floats:
    """The most `average_precision` can be off for bins.

    In a bin of t defective and f normal ones, below T and F others, the precision at the i-th defective one lies
    between (T+i) / (T+i+F+f), all normal ones first, and (T+t) / (T+t+F), all of them last. The sum over i of the
    former is at least t - (F+f) ln((T+F+f+t) / (T+F+f)).
    """
    true, false = counts_above(defective), counts_above(normal)
    step = np.diff(true)
    above_true, above_false, with_false = true[..., :-1], false[..., :-1], false[..., 1:]
    first = above_true + with_false
    lost = with_false * np.log1p(np.divide(step, first, out=np.zeros_like(step), where=first > 0))
    value = np.nan_to_num(step * ratio(true, true + false)[..., 1:])
    best = np.nan_to_num(step * ratio(true[..., 1:], true[..., 1:] + above_false))
    off = np.maximum((best - value).sum(axis=-1), (value - (step - lost)).sum(axis=-1))
    return np.asarray(ratio(off, true[..., -1]))


def f1_max_error(normal: Floats, defective: Floats) -> Floats:
    """Return how much too low the highest F1 can be for bins: a threshold inside a bin might split its classes."""
    true, false = counts_above(defective), counts_above(normal)
    best = ratio(2 * true[..., 1:], true[..., -1:] + true[..., 1:] + false[..., :-1])
    return np.asarray(best.max(axis=-1) - f1_by_level(normal, defective).max(axis=-1))


def aupro_error(normal: Floats, overlap: Floats, regions: Floats, limit: float) -> Floats:
    """The most `aupro` can be off for bins.

    Between two known points a rising curve stays in their rectangle. The chord halves it; where the limit cuts it,
    the whole of what is left counts.
    """
    rate = rates_above(normal)
    width = np.diff(rate)
    whole = rate[..., 1:] <= limit
    cut = np.clip(limit - rate[..., :-1], 0.0, width)
    rise = np.diff(ratio(counts_above(overlap), regions[..., None]))
    return np.asarray((np.where(whole, width / 2, cut) * rise).sum(axis=-1) / limit)
