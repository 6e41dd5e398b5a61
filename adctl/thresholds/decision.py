"""One image's score to verdict, p-value and anomaly probability.

The p-value is conformal: uniform for good images, never below 1 / (n + 1). The probability never falls as the score
rises, and reads on a scale from 0 to 1:

- from good scores alone it is the share of good images that score lower: counted up to the start of the tail, and
  by the fitted generalised Pareto tail beyond, where p-values can no longer tell strange from very strange. Nobody
  who has only seen good images can say more.
- with labelled defects it is the probability that the image is defective, were good and defective ones equally
  frequent: isotonic regression (Zadrozny & Elkan 2002), classes weighted alike, never quite 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adctl.records import Calibration, CalibrationScores, ProbabilityCurve, Verdict
from adctl.thresholds.conformal import p_values
from adctl.thresholds.pareto_tail import fit_tail, survival

if TYPE_CHECKING:
    from adctl.thresholds.unsupervised import Scores

_FEWEST_LABELLED = 5
"""Of each class, for a probability of being defective."""


@dataclass(frozen=True)
class Decision:
    """What a calibration says of one score.

    Attributes:
        verdict: The decision.
        p_value: Conformal.
        probability: That the image is anomalous, 0 to 1.
    """

    verdict: Verdict
    p_value: float
    probability: float


class DecisionRule:
    """Judges scores by a calibration.

    Args:
        calibration: Of the model that gave the scores.
    """

    def __init__(self, calibration: Calibration) -> None:
        self.calibration = calibration
        self._good = np.array(calibration.evidence.good)

    def __call__(self, score: float) -> Decision:
        """Judge one raw score."""
        one = np.array([score])
        return Decision(
            verdict=self.calibration.verdict(score),
            p_value=float(p_values(self._good, one)[0]),
            probability=float(anomaly_probabilities(self.calibration.probability, one)[0]),
        )


def fit_probability(evidence: CalibrationScores) -> ProbabilityCurve:
    """The curve from scores to anomaly probabilities that the evidence allows; see the head of this module."""
    good, defective = np.array(evidence.good), np.array(evidence.defective)
    if min(len(good), len(defective)) >= _FEWEST_LABELLED:
        return _isotonic(good, defective)
    tail = fit_tail(good)
    body = np.unique(good[good <= tail.start])
    below = np.searchsorted(good, body, side="right") / len(good)
    return ProbabilityCurve(tuple(body.tolist()), tuple(below.tolist()), tail)


def anomaly_probabilities(curve: ProbabilityCurve, scores: Scores) -> Scores:
    """Anomaly probabilities [m] of scores [m]."""
    found = np.asarray(np.interp(scores, curve.scores, curve.probabilities))
    if curve.tail is not None:
        beyond = scores > curve.tail.start
        found[beyond] = 1 - survival(curve.tail, scores[beyond])
    return found


def _isotonic(good: Scores, defective: Scores) -> ProbabilityCurve:
    from scipy.optimize import isotonic_regression

    scores, where = np.unique(np.concatenate([good, defective]), return_inverse=True)
    of_good = np.bincount(where[: len(good)], minlength=len(scores)) / len(good)
    of_defective = np.bincount(where[len(good) :], minlength=len(scores)) / len(defective)
    weights = of_good + of_defective
    fitted = isotonic_regression(of_defective / weights, weights=weights).x
    uncertain = np.clip(fitted, 0.5 / (len(good) + 1), 1 - 0.5 / (len(defective) + 1))
    return ProbabilityCurve(tuple(scores.tolist()), tuple(uncertain.tolist()))
