"""Thresholds from good and defective scores: best F1, a required precision or recall, least cost.

All functions search the same candidates: below all scores, above all scores, and halfway between two neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adctl.errors import DataError
from adctl.thresholds.unsupervised import Scores, Threshold, check_scores

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Costs:
    """Costs of wrong decisions, in any unit.

    Attributes:
        miss: Cost of a defective image that passes.
        alarm: Cost of a good image that is rejected.
        defect_rate: Share of defective images in production; None takes the share among the labelled images.
    """

    miss: float
    alarm: float
    defect_rate: float | None = None


EQUAL_COSTS = Costs(1.0, 1.0)
"""A miss costs as much as a false alarm."""


@dataclass(frozen=True)
class _Candidates:
    """Candidate thresholds from high to low [k], and the defective and good images above each [k]."""

    thresholds: Scores
    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    good: int
    defective: int

    @property
    def precision(self) -> Scores:
        """Precision [k]; 1 where no image is above the threshold."""
        positives = self.true_positives + self.false_positives
        return np.where(positives > 0, self.true_positives / np.maximum(positives, 1), 1.0)

    @property
    def recall(self) -> Scores:
        return self.true_positives / self.defective

    def at(self, index: int, level: float) -> Threshold:
        return Threshold(float(self.thresholds[index]), level)


def by_best_f1(good: Scores, defective: Scores) -> Threshold:
    """Return the threshold with the highest F1 for good [n] and defective [m] scores; of several, the highest.

    Raises:
        DataError: A class is missing, or some scores are not finite.
    """
    candidates = _candidates(good, defective)
    true_positives = candidates.true_positives
    f1 = 2 * true_positives / (true_positives + candidates.false_positives + candidates.defective)
    best = int(np.argmax(f1))
    return candidates.at(best, float(f1[best]))


def by_precision(good: Scores, defective: Scores, precision: float) -> Threshold:
    """Return the threshold with the most true positives among those that reach a precision; of several, the highest.

    Raises:
        DataError: A class is missing, some scores are not finite, or no threshold reaches the precision.
    """
    candidates = _candidates(good, defective)
    reached = (candidates.precision >= precision) & (candidates.true_positives > 0)
    if not reached.any():
        best = float(candidates.precision[candidates.true_positives > 0].max())
        raise DataError(
            f"No threshold reaches a precision of {precision:g} on these images; the best is {best:.3g}.",
            f"Ask for --min-precision {best:.2g} or less, or give other images.",
        )
    return candidates.at(int(np.argmax(np.where(reached, candidates.true_positives, -1))), precision)


def by_recall(good: Scores, defective: Scores, recall: float) -> Threshold:
    """Return the highest threshold that reaches a recall, which gives the fewest false alarms.

    Raises:
        DataError: A class is missing, or some scores are not finite.
    """
    candidates = _candidates(good, defective)
    return candidates.at(int(np.argmax(candidates.recall >= recall)), recall)


def by_cost(good: Scores, defective: Scores, costs: Costs) -> Threshold:
    """Return the threshold with the lowest expected cost per image; of several, the highest. Its level is that cost.

    Raises:
        DataError: A class is missing, or some scores are not finite.
    """
    candidates = _candidates(good, defective)
    defect_rate = costs.defect_rate
    if defect_rate is None:
        defect_rate = candidates.defective / (candidates.defective + candidates.good)
    cost_of_misses = costs.miss * defect_rate * (1 - candidates.recall)
    cost = cost_of_misses + costs.alarm * (1 - defect_rate) * candidates.false_positives / candidates.good
    best = int(np.argmin(cost))
    return candidates.at(best, float(cost[best]))


def _candidates(good: Scores, defective: Scores) -> _Candidates:
    good, defective = np.sort(check_scores(good)), np.sort(check_scores(defective, kind="defective"))
    values = np.unique(np.concatenate([good, defective]))[::-1]
    # The middle of two adjacent floats may round to the upper one, but the upper score must stay above the threshold.
    middles = np.minimum(values[1:] + (values[:-1] - values[1:]) / 2, np.nextafter(values[:-1], -np.inf))
    thresholds = np.concatenate([values[:1], middles, [np.nextafter(values[-1], -np.inf)]])
    return _Candidates(
        thresholds=thresholds,
        true_positives=len(defective) - np.searchsorted(defective, thresholds, side="right"),
        false_positives=len(good) - np.searchsorted(good, thresholds, side="right"),
        good=len(good),
        defective=len(defective),
    )
