"""Two detectors on the same images: is the difference of their metrics more than chance? Knows no files or runs.

DeLong's test for the AUROC; for all other metrics a paired bootstrap, in which both detectors are measured on the
same resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from adctl.errors import DataError
from adctl.metrics.bootstrap import Interval, Resampling, can_resample, percentile_interval, replicates
from adctl.metrics.image import image_measure
from adctl.metrics.labels import Bools, Floats, absent_class, check_labelled_scores, has_both_classes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike

_COUNTS = ("tp", "fp", "tn", "fn")


@dataclass(frozen=True)
class Comparison:
    """One metric of two detectors on the same images.

    Attributes:
        first: Of the first.
        second: Of the second.
        difference: The second's less the first's.
        interval: Of the difference, or None where it cannot be had.
        p_value: The chance of a difference at least this large, either way, if there were none; None with a reason.
        method: `delong` or `bootstrap`.
        reason: Why there is no p-value.
    """

    first: float
    second: float
    difference: float
    interval: Interval | None
    p_value: float | None
    method: str
    reason: str = ""


def delong(
    first: ArrayLike,
    second: ArrayLike,
    labels: ArrayLike,
    *,
    level: float = 0.95,
    names: Sequence[str] | None = None,
) -> Comparison:
    """DeLong's test for two AUROCs on the same images.

    DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
    characteristic curves", Biometrics 44, 1988; by ranks as in Sun and Xu, IEEE Signal Processing Letters 21, 2014.

    Args:
        first: Raw scores [n].
        second: Raw scores of the same images [n].
        labels: True where defective [n].
        level: Of the confidence interval.
        names: Of the images [n], to name those without a score.

    Raises:
        DataError: A score is not a finite number, or only one class is present.
    """
    one, two, truth = _paired(first, second, labels, names)
    (auroc_1, of_defects_1, of_good_1), (auroc_2, of_defects_2, of_good_2) = (
        _placements(one, truth),
        _placements(two, truth),
    )
    difference = auroc_2 - auroc_1
    if min(len(of_defects_1), len(of_good_1)) < 2:  # noqa: PLR2004 - a variance needs two values
        reason = "a class has fewer than two images"
        return Comparison(auroc_1, auroc_2, difference, None, None, "delong", reason)
    variance = _variance_of_mean(of_defects_2 - of_defects_1) + _variance_of_mean(of_good_2 - of_good_1)
    if variance <= np.finfo(np.float64).eps ** 2:
        same = difference == 0
        reason = "" if same else "the scores leave no variance to test the difference against"
        bounds = Interval(difference, difference) if same else None
        return Comparison(auroc_1, auroc_2, difference, bounds, 1.0 if same else None, "delong", reason)
    deviation = float(np.sqrt(variance))
    half = float(stats.norm.ppf((1 + level) / 2)) * deviation
    p_value = float(2 * stats.norm.sf(abs(difference) / deviation))
    return Comparison(auroc_1, auroc_2, difference, Interval(difference - half, difference + half), p_value, "delong")


def compare_image_metrics(
    first: ArrayLike,
    second: ArrayLike,
    labels: ArrayLike,
    *,
    thresholds: tuple[float, float] | None = None,
    resampling: Resampling | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Comparison]:
    """Every image metric of two detectors: the AUROC by DeLong's test, the others by paired bootstrap.

    Args:
        first: Raw scores [n].
        second: Raw scores of the same images [n].
        labels: True where defective [n].
        thresholds: Of the first and of the second; None leaves out what rests on them.
        resampling: How to draw; 1000 resamples, 95 % and seed 0 unless given.
        names: Of the images [n], to name those without a score.

    Raises:
        DataError: A score is not a finite number, or only one class is present.
    """
    one, two, truth = _paired(first, second, labels, names)
    draws = resampling or Resampling()
    measures = [
        image_measure(one, truth, thresholds and thresholds[0]),
        image_measure(two, truth, thresholds and thresholds[1]),
    ]
    once = np.ones((1, len(truth)))
    points = [{name: float(value[0]) for name, value in measure(once).items()} for measure in measures]
    drawn = [replicates(truth, draws, measure) if can_resample(truth) else {} for measure in measures]
    found = compare_replicates(points[0], points[1], drawn[0], drawn[1], draws.level)
    found = {name: comparison for name, comparison in found.items() if name not in _COUNTS}
    return found | {"auroc": delong(one, two, truth, level=draws.level)}


def compare_replicates(
    first: Mapping[str, float],
    second: Mapping[str, float],
    first_drawn: Mapping[str, Floats],
    second_drawn: Mapping[str, Floats],
    level: float,
) -> dict[str, Comparison]:
    """Metrics of two detectors by what they came to on the same resamples, such as `PixelSamples.replicates` gives.

    The p-value is twice the share of resamples in which the difference is zero or has the other sign, with one added
    to both counts (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 4.2).

    Args:
        first: Metrics of the first; those that are NaN are left out.
        second: Metrics of the second.
        first_drawn: The first's in each resample [samples].
        second_drawn: The second's in the same resamples.
        level: Of the confidence intervals.
    """
    names = [name for name in first if np.isfinite(first[name]) and np.isfinite(second.get(name, np.nan))]
    return {
        name: _bootstrapped(
            first[name],
            second[name],
            second_drawn.get(name, np.empty(0)) - first_drawn.get(name, np.empty(0)),
            level,
        )
        for name in names
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for how many there are: rejecting those below a level errs once with that chance at most.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.

    Args:
        p_values: Of one family of tests, in any order and however they depend on each other.

    Returns:
        The corrected ones in the same order, none below its own nor above 1.
    """
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return [float(value) for value in corrected]


def _bootstrapped(first: float, second: float, differences: Floats, level: float) -> Comparison:
    finite = differences[np.isfinite(differences)]
    if not len(finite):
        reason = "a class has fewer than two images"
        return Comparison(first, second, second - first, None, None, "bootstrap", reason)
    tail = min(np.count_nonzero(finite <= 0), np.count_nonzero(finite >= 0))
    p_value = min(1.0, 2 * (tail + 1) / (len(finite) + 1))
    return Comparison(first, second, second - first, percentile_interval(differences, level), p_value, "bootstrap")


def _paired(
    first: ArrayLike, second: ArrayLike, labels: ArrayLike, names: Sequence[str] | None
) -> tuple[Floats, Floats, Bools]:
    one, truth = check_labelled_scores(first, labels, names)
    two, _ = check_labelled_scores(second, labels, names)
    if not has_both_classes(truth):
        raise DataError(
            f"A comparison needs good and defective images, but {absent_class(truth)}.",
            "Add labelled images of both kinds.",
        )
    return one, two, truth


def _placements(values: Floats, truth: Bools) -> tuple[float, Floats, Floats]:
    """The AUROC, and for each defective and each good image the share of the other class it ranks rightly against."""
    defective, good = values[truth], values[~truth]
    ranks = stats.rankdata(values)
    of_defects = (ranks[truth] - stats.rankdata(defective)) / len(good)
    of_good = 1 - (ranks[~truth] - stats.rankdata(good)) / len(defective)
    return float(of_defects.mean()), of_defects, of_good


def _variance_of_mean(values: Floats) -> float:
    return float(values.var(ddof=1) / len(values))
