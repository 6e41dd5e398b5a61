"""Distribution of scores by class: summary statistics, effect size, normality test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adctl.metrics.labels import Floats, check_labelled_scores
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

_SHAPIRO = (3, 5000)
"""Smallest and largest number of scores for which the p-value of the Shapiro-Wilk test is valid."""


def p_text(value: float) -> str:
    """Return a p-value with three decimals; `< 0.001` for a smaller one, because no p-value is zero."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"  # noqa: PLR2004 - three decimals


@dataclass(frozen=True)
class Normality:
    """Result of a test for a normal distribution; a small p-value means that the scores are not normal.

    Attributes:
        test: `shapiro-wilk` for up to 5000 scores (Shapiro and Wilk, Biometrika 52, 1965), `dagostino-pearson` for
            more (D'Agostino and Pearson, Biometrika 60, 1973).
        statistic: Test statistic.
        p_value: P-value.
    """

    test: str
    statistic: float
    p_value: float


@dataclass(frozen=True)
class Distribution:
    """Summary of the scores of one class.

    Attributes:
        count: Number of scores.
        mean: Arithmetic mean.
        sd: Sample standard deviation (n - 1 in the denominator); None for a single score.
        minimum: Lowest score.
        q25: Lower quartile.
        median: Median.
        q75: Upper quartile.
        maximum: Highest score.
        skewness: Third standardised moment; None if all scores are equal.
        normality: Normality test; None for fewer than three scores, or if all are equal.
    """

    count: int
    mean: float
    sd: float | None
    minimum: float
    q25: float
    median: float
    q75: float
    maximum: float
    skewness: float | None
    normality: Normality | None


@dataclass(frozen=True)
class EffectSize:
    """Distance between the scores of good and defective images.

    Attributes:
        cohens_d: Difference of the means in pooled standard deviations (Cohen, "Statistical Power Analysis for the
            Behavioral Sciences", 1988, section 2.5); None if no class varies or both have a single score.
        cliffs_delta: Share of pairs in which the defective image scores higher, minus the share in which it scores
            lower (Cliff, Psychological Bulletin 114, 1993); equal to 2 AUROC - 1.
    """

    cohens_d: float | None
    cliffs_delta: float


def distribution(scores: ArrayLike) -> Distribution | None:
    """Summarise the scores of one class; return None if there are none.

    Args:
        scores: Raw scores [n].

    Raises:
        DataError: A score is not a finite number.
    """
    from scipy import stats  # slow to import

    values, _ = check_labelled_scores(scores, np.zeros(np.shape(scores), np.bool_))
    if not len(values):
        return None
    low, q25, median, q75, high = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    varies = _varies(values)
    return Distribution(
        count=len(values),
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)) if len(values) > 1 else None,
        minimum=float(low),
        q25=float(q25),
        median=float(median),
        q75=float(q75),
        maximum=float(high),
        skewness=float(stats.skew(values)) if varies else None,
        normality=normality(values) if varies else None,
    )


def distributions(scores: ArrayLike, labels: Sequence[str]) -> dict[str, Distribution]:
    """Summarise the good scores and the scores of each defect type, good ones first.

    Args:
        scores: Raw scores [n].
        labels: `"good"` or the defect type of each image [n].

    Raises:
        DataError: A score is not a finite number.
    """
    kinds = np.asarray(labels, np.str_)
    values, _ = check_labelled_scores(scores, kinds != GOOD)
    order = sorted(set(labels), key=lambda kind: (kind != GOOD, kind))
    summaries = {kind: distribution(values[kinds == kind]) for kind in order}
    return {kind: summary for kind, summary in summaries.items() if summary is not None}


def effect_size(good: ArrayLike, defective: ArrayLike) -> EffectSize | None:
    """Compute the effect size between two classes; return None if one of them is empty.

    Args:
        good: Raw scores of good images [n].
        defective: Raw scores of defective images [m].

    Raises:
        DataError: A score is not a finite number.
    """
    low, _ = check_labelled_scores(good, np.zeros(np.shape(good), np.bool_))
    high, _ = check_labelled_scores(defective, np.ones(np.shape(defective), np.bool_))
    if not len(low) or not len(high):
        return None
    ordered = np.sort(low)
    lower, not_higher = (np.searchsorted(ordered, high, side=side) for side in ("left", "right"))
    delta = float((lower - (len(low) - not_higher)).mean() / len(low))
    return EffectSize(_cohens_d(low, high), delta)


def normality(scores: Floats) -> Normality | None:
    """Test finite scores [n] for normality; return None for fewer than three scores, or if all are equal."""
    if len(scores) < _SHAPIRO[0] or not _varies(scores):
        return None
    from scipy import stats

    if len(scores) <= _SHAPIRO[1]:
        # Standardising does not change the result, but scipy warns about a narrow range far from zero.
        result, name = stats.shapiro((scores - scores.mean()) / scores.std()), "shapiro-wilk"
    else:
        result, name = stats.normaltest(scores), "dagostino-pearson"
    return Normality(name, float(result.statistic), float(result.pvalue))


def _cohens_d(low: Floats, high: Floats) -> float | None:
    freedom = len(low) + len(high) - 2
    squares = float(((low - low.mean()) ** 2).sum() + ((high - high.mean()) ** 2).sum())
    if freedom < 1 or not (_varies(low) or _varies(high)):
        return None
    return float((high.mean() - low.mean()) / np.sqrt(squares / freedom))


def _varies(values: Floats) -> bool:
    """Return whether scores differ by more than rounding errors, and enough that squared differences are not zero."""
    return bool(np.ptp(values) > max(1e-12 * np.abs(values).max(), 1e-150))
