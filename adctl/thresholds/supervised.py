"""Thresholds from labelled images: best F1, a precision or recall that must be reached, least cost.

All look at the same candidates: halfway between each two neighbouring scores, below all and above all.
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
    """What mistakes cost, in any unit.

    Attributes:
        miss: Of a defective image that passes.
        alarm: Of a good image that is called out.
        defect_rate: Share of defective images on the line; None takes that among the labelled images.
    """

    miss: float
    alarm: float
    defect_rate: float | None = None


EQUAL_COSTS = Costs(1.0, 1.0)
"""A miss costs what an alarm costs."""


@dataclass(frozen=True)
class _Candidates:
    """Thresholds from high to low, and the images above each."""

    thresholds: Scores
    caught: NDArray[np.int64]
    alarms: NDArray[np.int64]
    good: int
    defective: int

    @property
    def precision(self) -> Scores:
        """1 where nothing is called out."""
        called = self.caught + self.alarms
        return np.where(called > 0, self.caught / np.maximum(called, 1), 1.0)

    @property
    def recall(self) -> Scores:
        return self.caught / self.defective

    def at(self, index: int, level: float) -> Threshold:
        return Threshold(float(self.thresholds[index]), level)


def by_best_f1(good: Scores, defective: Scores) -> Threshold:
    """The threshold with the highest F1 of good [n] and defective [m] scores; the highest such one.

    Raises:
        DataError: A class is missing, or some scores are not finite.
    """
    found = _candidates(good, defective)
    f1 = 2 * found.caught / (found.caught + found.alarms + found.defective)
    best = int(np.argmax(f1))
    return found.at(best, float(f1[best]))


def by_precision(good: Scores, defective: Scores, precision: float) -> Threshold:
    """Among the thresholds that reach a precision, the one that catches most, and of these the highest.

    Raises:
        DataError: A class is missing, some scores are not finite, or no threshold reaches it.
    """
    found = _candidates(good, defective)
    reached = (found.precision >= precision) & (found.caught > 0)
    if not reached.any():
        best = float(found.precision[found.caught > 0].max())
        raise DataError(
            f"No threshold reaches a precision of {precision:g} on these images; the best is {best:.3g}.",
            f"Ask for --min-precision {best:.2g} or less, or give other images.",
        )
    return found.at(int(np.argmax(np.where(reached, found.caught, -1))), precision)


def by_recall(good: Scores, defective: Scores, recall: float) -> Threshold:
    """The highest threshold that reaches a recall, and so gives the fewest false alarms.

    Raises:
        DataError: A class is missing, or some scores are not finite.
    """
    found = _candidates(good, defective)
    return found.at(int(np.argmax(found.recall >= recall)), recall)


def by_cost(good: Scores, defective: Scores, costs: Costs) -> Threshold:
    """The threshold with the least expected cost an image; the highest such one. Its level is that cost.

    Raises:
        DataError: A class is missing, or some scores are not finite.
    """
    found = _candidates(good, defective)
    share = found.defective / (found.defective + found.good) if costs.defect_rate is None else costs.defect_rate
    missing = costs.miss * share * (1 - found.recall)
    cost = missing + costs.alarm * (1 - share) * found.alarms / found.good
    best = int(np.argmin(cost))
    return found.at(best, float(cost[best]))


def _candidates(good: Scores, defective: Scores) -> _Candidates:
    good, defective = np.sort(check_scores(good)), np.sort(check_scores(defective, kind="defective"))
    values = np.unique(np.concatenate([good, defective]))[::-1]
    # The middle of two neighbouring floats may be the upper one; above must stay above.
    middles = np.minimum(values[1:] + (values[:-1] - values[1:]) / 2, np.nextafter(values[:-1], -np.inf))
    thresholds = np.concatenate([values[:1], middles, [np.nextafter(values[-1], -np.inf)]])
    return _Candidates(
        thresholds=thresholds,
        caught=len(defective) - np.searchsorted(defective, thresholds, side="right"),
        alarms=len(good) - np.searchsorted(good, thresholds, side="right"),
        good=len(good),
        defective=len(defective),
    )
