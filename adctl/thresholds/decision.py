"""Verdict, p-value and anomaly probability of one score.

The p-value is conformal: uniform for good images, never below 1 / (n + 1).
The anomaly probability lies between 0 and 1 and never falls as the score rises:

- Without labelled defects it is the share of good images that do not score higher. It is counted up to the start of the
  tail and computed from the fitted generalised Pareto tail above it, where p-values cannot get smaller.
- With labelled defects it is the probability that the image is defective, if good and defective images were equally
  frequent: isotonic regression (Zadrozny & Elkan 2002) with equal weight for both classes, never exactly 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adctl.records import Calibration, CalibrationScores, ProbabilityCurve, Verdict
from adctl.thresholds import contaminated, new_groups
from adctl.thresholds.conformal import p_values
from adctl.thresholds.pareto_tail import fit_tail, survival

if TYPE_CHECKING:
    from pathlib import PurePath

    from adctl.thresholds.unsupervised import Scores

_FEWEST_LABELLED = 5
"""Smallest number of images in each class for computing the probability of a defect."""


@dataclass(frozen=True)
class Decision:
    """The decision about one score.

    Attributes:
        verdict: Good, warn or reject.
        p_value: Conformal p-value.
        probability: Probability that the image is anomalous, 0 to 1.
    """

    verdict: Verdict
    p_value: float
    probability: float


class DecisionRule:
    """Turns scores into decisions.

    Args:
        calibration: Calibration of the model that computed the scores.
    """

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self._good = np.array(calibration.evidence.good)
        self._groups = calibration.evidence.groups if calibration.method == new_groups.METHOD else ()

        self._categories = {name: DecisionRule(own) for name, own in calibration.categories.items()}

    def for_image(self, path: PurePath) -> DecisionRule:
        """Return the rule of the category whose folder holds an image, or this one if none does."""
        folders = reversed(path.parent.parts) if self._categories else ()
        return next((self._categories[name] for name in folders if name in self._categories), self)

    def __call__(self, score: float) -> Decision:
        """Decide about one raw score."""
        scores = np.array([score])
        return Decision(
            verdict=self.calibration.verdict(score),
            p_value=float(self._p_values(scores)[0]),
            probability=float(anomaly_probabilities(self.calibration.probability, scores)[0]),
        )

    def _p_values(self, scores: Scores) -> Scores:
        if self._groups:
            return new_groups.exceedance(self._good, self._groups, scores, or_equal=True)
        if self.calibration.evidence.contaminated is not None:
            return contaminated.p_values(self._good, scores, self.calibration.evidence.contaminated)
        return p_values(self._good, scores)


def fit_probability(scores: CalibrationScores) -> ProbabilityCurve:
    """Fit the curve from scores to anomaly probabilities; the module docstring describes the two kinds."""
    good, defective = np.array(scores.good), np.array(scores.defective)
    if min(len(good), len(defective)) >= _FEWEST_LABELLED:
        return _isotonic(good, defective)
    tail = fit_tail(good)
    body = np.unique(good[good <= tail.start])
    share = np.searchsorted(good, body, side="right") / len(good)
    return ProbabilityCurve(tuple(body.tolist()), tuple(share.tolist()), tail)


def anomaly_probabilities(curve: ProbabilityCurve, scores: Scores) -> Scores:
    """Return the anomaly probabilities [m] of scores [m]."""
    probabilities = np.asarray(np.interp(scores, curve.scores, curve.probabilities))
    if curve.tail is not None:
        in_tail = scores > curve.tail.start
        probabilities[in_tail] = 1 - survival(curve.tail, scores[in_tail])
    return probabilities


def _isotonic(good: Scores, defective: Scores) -> ProbabilityCurve:
    from scipy.optimize import isotonic_regression

    scores, index = np.unique(np.concatenate([good, defective]), return_inverse=True)
    good_share = np.bincount(index[: len(good)], minlength=len(scores)) / len(good)
    defective_share = np.bincount(index[len(good) :], minlength=len(scores)) / len(defective)
    weights = good_share + defective_share
    fitted = isotonic_regression(defective_share / weights, weights=weights).x
    probabilities = np.clip(fitted, 0.5 / (len(good) + 1), 1 - 0.5 / (len(defective) + 1))
    return ProbabilityCurve(tuple(scores.tolist()), tuple(probabilities.tolist()))
