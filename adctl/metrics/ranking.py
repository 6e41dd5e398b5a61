"""Ranking metrics from counts per level, for any number of resamples at once.

A level is a distinct value or a histogram bin. The last axis of each array holds the levels in ascending order; leading
axes are resamples. Counts may be weights. A metric is NaN if one class is absent. Values within a level count as ties:
metrics are exact if levels are distinct values, and the `_error` functions bound the error if levels are bins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from adctl.metrics.labels import Floats

PRO_LIMIT, STRICT_PRO_LIMIT = 0.30, 0.05
"""False-positive rates up to which per-region overlap is integrated."""


def counts_above(counts: Floats) -> Floats:
    """Return the number of values at or above each level of a histogram [...,k], as [...,k+1], starting with 0."""
    cumulative = np.cumsum(counts[..., ::-1], axis=-1, dtype=np.float64)
    return np.concatenate([np.zeros_like(cumulative[..., :1]), cumulative], axis=-1)


def rates_above(counts: Floats) -> Floats:
    """Return `counts_above` as a share of the total: [...,k] to [...,k+1], from 0 to 1."""
    above = counts_above(counts)
    return ratio(above, above[..., -1:])


def ratio(part: Floats, whole: Floats) -> Floats:
    """Divide element by element; NaN where `whole` is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    result: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return result


def auroc(normal: Floats, defective: Floats) -> Floats:
    """Compute the area under the ROC curve: the probability that a defective item ranks above a normal one.

    Ties count half (Hanley and McNeil, "The meaning and use of the area under a ROC curve", Radiology 143, 1982).
    """
    tp, fp = counts_above(defective), counts_above(normal)
    # Counts rather than rates: whole numbers add up exactly, so that a perfect ranking gives exactly 1.
    return ratio(np.asarray(np.trapezoid(tp, fp, axis=-1)), tp[..., -1] * fp[..., -1])


def average_precision(normal: Floats, defective: Floats) -> Floats:
    """Sum precision times the step in recall over levels, without interpolation, as scikit-learn does."""
    tp = counts_above(defective)
    precision = ratio(tp, tp + counts_above(normal))[..., 1:]
    return np.asarray(ratio(np.nansum(np.diff(tp) * precision, axis=-1), tp[..., -1]))


def f1_by_level(normal: Floats, defective: Floats) -> Floats:
    """Compute the F1 (equal to Dice) of calling each level and all above it anomalous: [...,k], in level order."""
    tp, fp = counts_above(defective), counts_above(normal)
    values = ratio(2 * tp, tp[..., -1:] + tp + fp)
    return np.asarray(values[..., :0:-1])


def fpr_at_tpr(normal: Floats, defective: Floats, tpr: float = 0.95) -> Floats:
    """Return the false-positive rate at the highest threshold whose recall is at least `tpr`."""
    reached = np.argmax(rates_above(defective) >= tpr, axis=-1)[..., None]
    return np.asarray(np.take_along_axis(rates_above(normal), reached, axis=-1)[..., 0])


def aupro(normal: Floats, overlap: Floats, regions: Floats, limit: float) -> Floats:
    """Compute the area under the per-region overlap curve for false-positive rates up to `limit`, divided by `limit`.

    Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 129, 2021, section 5.2, doi:10.1007/s11263-020-01400-4.

    Args:
        normal: Number of normal pixels in each level [...,k].
        overlap: Sum of 1 / region area over the defective pixels in each level [...,k].
        regions: Number of regions [...].
        limit: Upper end of the false-positive rate, in (0, 1]; the curve is interpolated there.
    """
    pro = ratio(counts_above(overlap), regions[..., None])
    fpr = rates_above(normal)
    width, rise = np.diff(fpr), np.diff(pro)
    kept = np.clip(limit - fpr[..., :-1], 0.0, width)
    kept_share = np.divide(kept, width, out=np.zeros_like(kept), where=width > 0)
    # Rounding of 1 / area can make the sum slightly larger than 1.
    return np.asarray(np.minimum((kept * (pro[..., :-1] + rise * kept_share / 2)).sum(axis=-1) / limit, 1.0))


def auroc_error(normal: Floats, defective: Floats) -> Floats:
    """Return the largest possible error of `auroc` for bins: half the share of pairs that fall into one bin."""
    return np.asarray((np.diff(rates_above(normal)) * np.diff(rates_above(defective))).sum(axis=-1) / 2)


def average_precision_error(normal: Floats, defective: Floats) -> Floats:
    """Return the largest possible error of `average_precision` for bins.

    Let a bin hold t defective and f normal items, with T and F above it. The precision at its i-th defective item is
    lowest if all normal items of the bin come first, (T+i) / (T+i+F+f), and highest if they come last, (T+i) / (T+i+F),
    which is at most (T+t) / (T+t+F). The sum of the lowest values over i is at least t - (F+f) ln((T+F+f+t) / (T+F+f)).
    """
    tp, fp = counts_above(defective), counts_above(normal)
    step = np.diff(tp)
    tp_above, fp_above, fp_with_bin = tp[..., :-1], fp[..., :-1], fp[..., 1:]
    start = tp_above + fp_with_bin
    loss = fp_with_bin * np.log1p(np.divide(step, start, out=np.zeros_like(step), where=start > 0))
    value = np.nan_to_num(step * ratio(tp, tp + fp)[..., 1:])
    highest = np.nan_to_num(step * ratio(tp[..., 1:], tp[..., 1:] + fp_above))
    error = np.maximum((highest - value).sum(axis=-1), (value - (step - loss)).sum(axis=-1))
    return np.asarray(ratio(error, tp[..., -1]))


def f1_max_error(normal: Floats, defective: Floats) -> Floats:
    """Return how much the highest F1 can be too low for bins: a threshold inside a bin might separate its classes."""
    tp, fp = counts_above(defective), counts_above(normal)
    highest = ratio(2 * tp[..., 1:], tp[..., -1:] + tp[..., 1:] + fp[..., :-1])
    return np.asarray(highest.max(axis=-1) - f1_by_level(normal, defective).max(axis=-1))


def aupro_error(normal: Floats, overlap: Floats, regions: Floats, limit: float) -> Floats:
    """Return the largest possible error of `aupro` for bins.

    Between two known points, a rising curve stays inside their rectangle. The straight line between them halves the
    rectangle, so half its area bounds the error. Where the limit cuts a rectangle, the whole remaining part counts.
    """
    fpr = rates_above(normal)
    width = np.diff(fpr)
    below_limit = fpr[..., 1:] <= limit
    cut = np.clip(limit - fpr[..., :-1], 0.0, width)
    rise = np.diff(ratio(counts_above(overlap), regions[..., None]))
    return np.asarray((np.where(below_limit, width / 2, cut) * rise).sum(axis=-1) / limit)
