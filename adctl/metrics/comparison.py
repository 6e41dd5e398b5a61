"""Comparison of two detectors on the same images: is the difference of a metric more than chance?

The AUROC is compared by DeLong's test, all other metrics by a paired bootstrap: both detectors are measured on the same
resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adctl.errors import DataError
from adctl.metrics.bootstrap import Interval, Resampling, can_resample, percentile_interval, replicates
from adctl.metrics.image import image_measure
from adctl.metrics.labels import Bools, Floats, absent_class, check_labelled_scores, has_both_classes
from adctl.metrics.table import IMAGE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike

_COUNTS = {one.name for one in IMAGE if one.is_count}


@dataclass(frozen=True)
class Comparison:
    """Comparison of one metric of two detectors on the same images.

    Attributes:
        first: Metric of the first detector.
        second: Metric of the second detector.
        difference: Second minus first.
        interval: Confidence interval of the difference, or None if it does not exist.
        p_value: Two-sided p-value of the hypothesis that there is no difference, or None if it does not exist.
        method: `delong` or `bootstrap`.
        reason: Why there is no p-value; empty if there is one.
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
    """Compare two AUROCs on the same images by DeLong's test.

    DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
    characteristic curves", Biometrics 44, 1988; computed from ranks as in Sun and Xu, IEEE Signal Processing Letters
    21, 2014.

    Args:
        first: Raw scores of the first detector [n].
        second: Raw scores of the second detector for the same images [n].
        labels: True for defective images [n].
        level: Confidence level of the interval.
        names: Image names [n] for the error message.

    Raises:
        DataError: A score is not a finite number, or only one class is present.
    """
    from scipy import stats  # slow to import

    first_scores, second_scores, truth = _check_pair(first, second, labels, names)
    first_auroc, first_defective, first_good = _placements(first_scores, truth)
    second_auroc, second_defective, second_good = _placements(second_scores, truth)
    difference = second_auroc - first_auroc

    def comparison(interval: Interval | None, p_value: float | None, reason: str = "") -> Comparison:
        return Comparison(first_auroc, second_auroc, difference, interval, p_value, "delong", reason)

    if min(len(first_defective), len(first_good)) < 2:  # noqa: PLR2004 - a variance needs two values
        return comparison(None, None, "a class has fewer than two images")
    variance = _variance_of_mean(second_defective - first_defective) + _variance_of_mean(second_good - first_good)
    if variance <= np.finfo(np.float64).eps ** 2:
        if difference == 0:
            return comparison(Interval(difference, difference), 1.0)
        return comparison(None, None, "the scores have no variance to test the difference against")
    deviation = float(np.sqrt(variance))
    half_width = float(stats.norm.ppf((1 + level) / 2)) * deviation
    p_value = float(2 * stats.norm.sf(abs(difference) / deviation))
    return comparison(Interval(difference - half_width, difference + half_width), p_value)


def mcnemar(first_only: int, second_only: int) -> float:
    """Return the two-sided p-value of the exact test that two verdicts on the same images are equally often right.

    McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12, 1947; exact by the binomial distribution.

    Args:
        first_only: Number of images on which only the first verdict is right.
        second_only: Number of images on which only the second verdict is right.
    """
    from scipy import stats  # slow to import

    return float(min(1.0, 2 * stats.binom.cdf(min(first_only, second_only), first_only + second_only, 0.5)))


def compare_image_metrics(
    first: ArrayLike,
    second: ArrayLike,
    labels: ArrayLike,
    *,
    thresholds: tuple[float, float] | None = None,
    resampling: Resampling | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Comparison]:
    """Compare every image metric of two detectors: the AUROC by DeLong's test, the others by paired bootstrap.

    Args:
        first: Raw scores of the first detector [n].
        second: Raw scores of the second detector for the same images [n].
        labels: True for defective images [n].
        thresholds: Thresholds of the first and the second detector; None leaves out the metrics that need them.
        resampling: Bootstrap settings; the defaults when None.
        names: Image names [n] for the error message.

    Raises:
        DataError: A score is not a finite number, or only one class is present.
    """
    first_scores, second_scores, truth = _check_pair(first, second, labels, names)
    resampling = resampling or Resampling()
    measures = [
        image_measure(first_scores, truth, thresholds and thresholds[0]),
        image_measure(second_scores, truth, thresholds and thresholds[1]),
    ]
    each_once = np.ones((1, len(truth)))
    metrics = [{name: float(value[0]) for name, value in measure(each_once).items()} for measure in measures]
    drawn = [replicates(truth, resampling, measure) if can_resample(truth) else {} for measure in measures]
    compared = compare_replicates(metrics[0], metrics[1], drawn[0], drawn[1], resampling.level)
    compared = {name: comparison for name, comparison in compared.items() if name not in _COUNTS}
    return compared | {"auroc": delong(first_scores, second_scores, truth, level=resampling.level)}


def compare_replicates(
    first: Mapping[str, float],
    second: Mapping[str, float],
    first_replicates: Mapping[str, Floats],
    second_replicates: Mapping[str, Floats],
    level: float,
) -> dict[str, Comparison]:
    """Compare the metrics of two detectors by their values in the same resamples (see `PixelSamples.replicates`).

    The p-value is twice the share of resamples in which the difference is zero or has the other sign, with one added to
    numerator and denominator (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 4.2).

    Args:
        first: Metrics of the first detector; metrics that are NaN for either detector are left out.
        second: Metrics of the second detector.
        first_replicates: Metrics of the first detector in each resample [samples].
        second_replicates: Metrics of the second detector in the same resamples [samples].
        level: Confidence level of the intervals.
    """
    none = np.empty(0)
    return {
        name: _bootstrap_comparison(
            value, second[name], second_replicates.get(name, none) - first_replicates.get(name, none), level
        )
        for name, value in first.items()
        if np.isfinite(value) and np.isfinite(second.get(name, np.nan))
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple tests: bound the probability of any false rejection at every level.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.

    Args:
        p_values: P-values of one family of tests, in any order; the tests may depend on each other.

    Returns:
        Corrected p-values in the same order, between the given p-value and 1.
    """
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return [float(value) for value in corrected]


def _bootstrap_comparison(first: float, second: float, differences: Floats, level: float) -> Comparison:
    finite = differences[np.isfinite(differences)]
    if not len(finite):
        reason = "a class has fewer than two images"
        return Comparison(first, second, second - first, None, None, "bootstrap", reason)
    tail = min(np.count_nonzero(finite <= 0), np.count_nonzero(finite >= 0))
    p_value = min(1.0, 2 * (tail + 1) / (len(finite) + 1))
    return Comparison(first, second, second - first, percentile_interval(differences, level), p_value, "bootstrap")


def _check_pair(
    first: ArrayLike, second: ArrayLike, labels: ArrayLike, names: Sequence[str] | None
) -> tuple[Floats, Floats, Bools]:
    first_scores, truth = check_labelled_scores(first, labels, names)
    second_scores, _ = check_labelled_scores(second, labels, names)
    if not has_both_classes(truth):
        raise DataError(
            f"A comparison needs good and defective images, but {absent_class(truth)}.",
            "Add labelled images of both kinds.",
        )
    return first_scores, second_scores, truth


def _placements(values: Floats, truth: Bools) -> tuple[float, Floats, Floats]:
    """Return the AUROC, and for each defective and each good image the share of the other class on its right side.

    DeLong et al. call these shares placement values; ties count half.
    """
    from scipy import stats

    defective, good = values[truth], values[~truth]
    ranks = stats.rankdata(values)
    of_defective = (ranks[truth] - stats.rankdata(defective)) / len(good)
    of_good = 1 - (ranks[~truth] - stats.rankdata(good)) / len(defective)
    return float(of_defective.mean()), of_defective, of_good


def _variance_of_mean(values: Floats) -> float:
    return float(values.var(ddof=1) / len(values))
