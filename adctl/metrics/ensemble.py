"""Scores of several models for the same images made one score: by mean, by maximum, by mean rank.

Models differ in scale, so their scores are first measured in standard deviations above the mean of the model's own
good scores, of images it has not learned from. Ranks need no scale, but depend on which images are ranked together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from adctl.metrics.labels import Floats


def standardise(scores: ArrayLike, good: ArrayLike) -> Floats:
    """Scores [n] in standard deviations above the mean of good scores [m]; without a spread, above their mean.

    Args:
        scores: Raw, of one model.
        good: Raw scores of good images that the same model has not learned from.
    """
    known = np.asarray(good, np.float64)
    deviation = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    return np.asarray((np.asarray(scores, np.float64) - known.mean()) / (deviation or 1.0), np.float64)


def combine_scores(scores: Sequence[ArrayLike], good: Sequence[ArrayLike]) -> dict[str, Floats]:
    """One score an image [n] from those of K models: `mean`, `max` and `rank`.

    Args:
        scores: Raw scores of the same n images, K arrays.
        good: For each model, raw scores of good images it has not learned from.
    """
    standard = np.stack([standardise(one, known) for one, known in zip(scores, good, strict=True)])
    ranks = np.stack([(stats.rankdata(np.asarray(one)) - 0.5) / len(np.asarray(one)) for one in scores])
    return {"mean": standard.mean(axis=0), "max": standard.max(axis=0), "rank": ranks.mean(axis=0)}
