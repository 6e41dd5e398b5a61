"""A rule and the evidence to the calibration that travels in the model file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adctl.errors import UsageError, unknown_name
from adctl.records import Calibration, CalibrationScores
from adctl.thresholds import conformal, pareto_tail, supervised, unsupervised
from adctl.thresholds.decision import fit_probability
from adctl.thresholds.supervised import EQUAL_COSTS, Costs
from adctl.thresholds.unsupervised import Scores, Threshold, check_scores

UNSUPERVISED = {
    "percentile": unsupervised.by_percentile,
    "sigma": unsupervised.by_sigma,
    "mad": unsupervised.by_mad,
    "tail": pareto_tail.by_tail,
    "conformal": conformal.by_false_alarm,
}
"""Methods that need good scores only, by name: (scores, level) to a threshold."""

SUPERVISED = ("f1", "precision", "recall", "cost")
"""Methods that need scores of defective images too."""

FIXED = "fixed"
"""The threshold is given."""

METHODS = (*UNSUPERVISED, *SUPERVISED, FIXED)

_PROMISING = ("percentile", "conformal")
"""Their thresholds lie at or above a score of a rank known beforehand, which is what a promise rests on."""

_WITHOUT_LEVEL = ("f1", "cost")
"""They seek an optimum, of which there is but one."""


@dataclass(frozen=True)
class ThresholdRule:
    """How thresholds are to be chosen.

    Attributes:
        method: One of `METHODS`.
        level: Percentile (0-100), number of sigmas, false-alarm rate, precision, recall, or the threshold itself; of no
            use to f1 and cost.
        warn: The level of a second, lower threshold; None for none.
        costs: Of mistakes, for `cost`.
    """

    method: str = "percentile"
    level: float = 99.0
    warn: float | None = None
    costs: Costs = EQUAL_COSTS


def calibrate(rule: ThresholdRule, evidence: CalibrationScores) -> tuple[Calibration, tuple[str, ...]]:
    """Choose the thresholds for scores and for map values.

    Args:
        rule: How.
        evidence: What the model says of images it has not learned from.

    Returns:
        The calibration, and notes for the user.

    Raises:
        UsageError: The method is unknown or lacks defective images, or the warning threshold is not below the other.
        DataError: There are too few scores, or some are not finite.
    """
    good = check_scores(evidence.good)
    chosen = _choose(rule, rule.level, evidence)
    warn = _warning(rule, evidence, chosen)
    calibration = Calibration(
        method=rule.method,
        threshold=chosen.value,
        pixel_threshold=_pixel_threshold(rule, evidence, chosen) if evidence.peaks else None,
        level=chosen.level,
        good_images=len(good),
        defect_images=len(evidence.defective),
        expected_false_alarm=conformal.expected_rate(good, chosen.value),
        score_range=(float(good.min()), float(good.max())),
        promised_false_alarm=_promise(rule, evidence),
        warn_threshold=warn.value if warn else None,
        warn_level=warn.level if warn else None,
        evidence=evidence,
        probability=fit_probability(evidence),
    )
    notes = [one.note for one in (chosen, warn) if one is not None and one.note is not None]
    return calibration, (*notes, *_out_of_range(evidence, chosen.value))


def _choose(rule: ThresholdRule, level: float, evidence: CalibrationScores) -> Threshold:
    good = np.array(evidence.good)
    if rule.method in UNSUPERVISED:
        return UNSUPERVISED[rule.method](good, level)
    if rule.method == FIXED:
        return Threshold(level, level)
    if rule.method not in SUPERVISED:
        raise unknown_name("method", rule.method, METHODS)
    if not evidence.defective:
        raise UsageError(
            f"The method {rule.method} needs scores of labelled defective images, and there are none.",
            "Give a folder of them with --defects DIR, or scores of labelled images with --scores DIR.",
        )
    defective = np.array(evidence.defective)
    if rule.method == "f1":
        return supervised.by_best_f1(good, defective)
    if rule.method == "cost":
        return supervised.by_cost(good, defective, rule.costs)
    by = supervised.by_precision if rule.method == "precision" else supervised.by_recall
    return by(good, defective, level)


def _warning(rule: ThresholdRule, evidence: CalibrationScores, chosen: Threshold) -> Threshold | None:
    if rule.warn is None:
        return None
    if rule.method in _WITHOUT_LEVEL:
        raise UsageError(
            f"The method {rule.method} has one optimum, so there is no second threshold to warn at.",
            "Choose another method for --warn-at, such as conformal.",
        )
    warn = _choose(rule, rule.warn, evidence)
    if warn.value >= chosen.value:
        raise UsageError(
            f"The threshold to warn at, {warn.value:.6g}, is not below the one to reject at, {chosen.value:.6g}.",
            "Give --warn-at a level that calls out more images.",
        )
    return warn


def _pixel_threshold(rule: ThresholdRule, evidence: CalibrationScores, chosen: Threshold) -> float:
    """By the same rule on the peaks of good maps; otherwise as many good images are called out."""
    peaks = check_scores(evidence.peaks)
    if rule.method in UNSUPERVISED:
        return UNSUPERVISED[rule.method](peaks, rule.level).value
    return _same_share(peaks, np.array(evidence.good), chosen.value)


def _same_share(peaks: Scores, good: Scores, threshold: float) -> float:
    return float(np.quantile(peaks, np.mean(good <= threshold), method="higher"))


def _promise(rule: ThresholdRule, evidence: CalibrationScores) -> float | None:
    """Scores from several models are not exchangeable with those of the one that is used: nothing is promised."""
    if rule.method not in _PROMISING or evidence.folds:
        return None
    count = len(evidence.good)
    if rule.method == "conformal":
        return conformal.guaranteed_rate(count, rule.level)
    # A percentile lies at or above the score of this rank, whatever the scores.
    rank = int(np.floor((count - 1) * rule.level / 100)) + 1
    return (count + 1 - rank) / (count + 1)


def _out_of_range(evidence: CalibrationScores, threshold: float) -> list[str]:
    """Notes on a threshold that decides nothing on the images it was chosen from."""
    if threshold < min(evidence.good):
        return [f"The threshold {threshold:.6g} lies below every good score: all good images would be rejected."]
    if evidence.defective and threshold >= max(evidence.defective):
        return [f"The threshold {threshold:.6g} lies above the scores of all defective images: none would be found."]
    return []
