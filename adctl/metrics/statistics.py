"""How scores are distributed by class: summary, distance of the classes, normality. Knows nothing of thresholds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from adctl.metrics.labels import Floats, check_labelled_scores
from adctl.records import GOOD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

_SHAPIRO = (3, 5000)
"""Numbers of scores between which Shapiro and Wilk's p-values hold."""


@dataclass(frozen=True)
class Normality:
    """Whether scores might come from a normal distribution; a small p-value says that they do not.

    Attributes:
        test: `shapiro-wilk` up to 5000 scores (Shapiro and Wilk, Biometrika 52, 1965), above it
            `dagostino-pearson` (D'Agostino and Pearson, Biometrika 60, 1973).
        statistic: Of the test.
        p_value: Of the test.
    """

    test: str
    statistic: float
    p_value: float


@dataclass(frozen=True)
class Distribution:
    """Scores of one class.

    Attributes:
        count: How many.
        mean: Their mean.
        sd: Standard deviation, dividing by one less than their number; None for a single score.
        minimum: The lowest.
        q25: Lower quartile.
        median: The middle one.
        q75: Upper quartile.
        maximum: The highest.
        skewness: Third standardised moment; None where all scores are the same.
        normality: None for fewer than three scores, or where all are the same.
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
    """How far the scores of defective images lie from those of good ones.

    Attributes:
        cohens_d: Difference of the means in pooled standard deviations (Cohen, "Statistical Power Analysis for the
            Behavioral Sciences", 1988, section 2.5); None where no class varies or both have a single score.
        cliffs_delta: Share of pairs in which the defective one scores higher less the share in which it scores lower
            (Cliff, Psychological Bulletin 114, 1993). It is 2 AUROC - 1.
    """

    cohens_d: float | None
    cliffs_delta: float


def distribution(scores: ArrayLike) -> Distribution | None:
    """Summary of one class; None where there are no scores.

    Args:
        scores: Raw scores [n].

    Raises:
        DataError: A score is not a finite number.
    """
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
    """Summaries of the good scores and of each defect type's, good ones first.

    Args:
        scores: Raw scores [n].
        labels: `"good"` or the defect type of each image [n].

    Raises:
        DataError: A score is not a finite number.
    """
    kinds = np.asarray(labels, np.str_)
    values, _ = check_labelled_scores(scores, kinds != GOOD)
    order = sorted(set(labels), key=lambda kind: (kind != GOOD, kind))
    found = {kind: distribution(values[kinds == kind]) for kind in order}
    return {kind: summary for kind, summary in found.items() if summary is not None}


def effect_size(good: ArrayLike, defective: ArrayLike) -> EffectSize | None:
    """Distance of two classes; None where one of them is empty.

    Args:
        good: Raw scores [n].
        defective: Raw scores [m].

    Raises:
        DataError: A score is not a finite number.
    """
    low, _ = check_labelled_scores(good, np.zeros(np.shape(good), np.bool_))
    high, _ = check_labelled_scores(defective, np.ones(np.shape(defective), np.bool_))
    if not len(low) or not len(high):
        return None
    ordered = np.sort(low)
    below, upto = (np.searchsorted(ordered, high, side=side) for side in ("left", "right"))
    delta = float((below - (len(low) - upto)).mean() / len(low))
    return EffectSize(_cohens_d(low, high), delta)


def normality(scores: Floats) -> Normality | None:
    """Test finite scores [n] for normality; None for fewer than three, or where all are the same."""
    if len(scores) < _SHAPIRO[0] or not _varies(scores):
        return None
    if len(scores) <= _SHAPIRO[1]:
        # Shifted and scaled, which changes nothing, lest scipy doubt numbers of narrow range far from zero.
        found, name = stats.shapiro((scores - scores.mean()) / scores.std()), "shapiro-wilk"
    else:
        found, name = stats.normaltest(scores), "dagostino-pearson"
    return Normality(name, float(found.statistic), float(found.pvalue))


def _cohens_d(low: Floats, high: Floats) -> float | None:
    freedom = len(low) + len(high) - 2
    squares = float(((low - low.mean()) ** 2).sum() + ((high - high.mean()) ** 2).sum())
    if freedom < 1 or not (_varies(low) or _varies(high)):
        return None
    return float((high.mean() - low.mean()) / np.sqrt(squares / freedom))


def _varies(values: Floats) -> bool:
    """Return whether scores differ by more than rounding, and by enough that squared differences are not zero."""
    return bool(np.ptp(values) > max(1e-12 * np.abs(values).max(), 1e-150))
