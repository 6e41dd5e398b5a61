"""Combine the scores of several models for the same images: by mean, maximum or mean rank.

Models score on different scales. For the mean and the maximum, scores are therefore first expressed in standard
deviations above the mean of the model's scores of good images it was not trained on. Ranks need no common scale, but
they depend on which images are ranked together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from adctl.metrics.labels import Floats


def standardise(scores: ArrayLike, good: ArrayLike) -> Floats:
    """Express scores [n] in standard deviations above the mean of good scores [m].

    If the standard deviation is 0 or unknown (one good score), only the mean is subtracted.

    Args:
        scores: Raw scores of one model [n].
        good: Raw scores of the same model for good images it was not trained on [m].
    """
    reference = np.asarray(good, np.float64)
    deviation = float(reference.std(ddof=1)) if len(reference) > 1 else 0.0
    return np.asarray((np.asarray(scores, np.float64) - reference.mean()) / (deviation or 1.0), np.float64)


def combine_scores(scores: Sequence[ArrayLike], good: Sequence[ArrayLike]) -> dict[str, Floats]:
    """Return the combined scores `mean`, `max` and `rank` [n] of K models.

    Args:
        scores: K arrays of raw scores of the same images [n].
        good: For each model, raw scores of good images it was not trained on.
    """
    standard = np.stack([standardise(*pair) for pair in zip(scores, good, strict=True)])
    from scipy import stats  # slow to import

    ranks = np.stack([(stats.rankdata(values) - 0.5) / len(values) for values in map(np.asarray, scores)])
    return {"mean": standard.mean(axis=0), "max": standard.max(axis=0), "rank": ranks.mean(axis=0)}
