"""The table of threshold methods; compute the stored calibration from a threshold rule and held-out scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from adctl.errors import DataError, UsageError, unknown_name
from adctl.records import Calibration, CalibrationScores
from adctl.thresholds import conformal, contaminated, new_groups, pareto_tail, smooth_tail, supervised, unsupervised
from adctl.thresholds.commissioning import commission
from adctl.thresholds.decision import fit_probability
from adctl.thresholds.supervised import EQUAL_COSTS, Costs
from adctl.thresholds.unsupervised import Threshold, check_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.thresholds.unsupervised import Scores

UNSUPERVISED = {
    "smooth": smooth_tail.by_smooth_tail,
    "percentile": unsupervised.by_percentile,
    "sigma": unsupervised.by_sigma,
    "mad": unsupervised.by_mad,
    "tail": pareto_tail.by_tail,
    "conformal": conformal.by_false_alarm,
}
"""Methods that need good scores only: functions of (scores, level) by name."""

SUPERVISED = ("f1", "precision", "recall", "cost")
"""Methods that also need scores of defective images."""

FIXED = "fixed"
"""Method whose level is the threshold itself."""

METHODS = (*UNSUPERVISED, *SUPERVISED, FIXED)
"""Values of `--method`; the method for new groups has a flag of its own."""

_GUARANTEED = ("percentile", "conformal", new_groups.METHOD)
"""Methods that guarantee a false-alarm rate: their threshold is at or above a score whose rank is known beforehand."""

_FEWEST_GROUPS = 2
"""Smallest number of groups of which one can be left out."""

_WITHOUT_LEVEL = ("f1", "cost")
"""Methods without a level: they search the one best threshold."""


@dataclass(frozen=True)
class ThresholdRule:
    """Rule for choosing thresholds.

    Attributes:
        method: Name from `METHODS`.
        level: Percentile (0-100), number of sigmas, false-alarm rate, precision, recall, or the threshold itself;
            ignored by `f1` and `cost`.
        warn: Level of a second, lower threshold for warnings; None for no warnings.
        costs: Costs of wrong decisions, for the method `cost`.
    """

    method: str = "smooth"
    level: float = 0.01
    warn: float | None = None
    costs: Costs = EQUAL_COSTS


def calibrate(rule: ThresholdRule, scores: CalibrationScores) -> tuple[Calibration, tuple[str, ...]]:
    """Compute the thresholds for image scores and for map values.

    Args:
        rule: Method and level.
        scores: Scores of images the model was not trained on.

    Returns:
        The calibration, and notes for the user.

    Raises:
        UsageError: The method is unknown or lacks defective images, or the warning threshold is not below the other.
        DataError: There are too few scores, or some are not finite.
    """
    if scores.contaminated is not None:
        return commission(scores, method=_method_for_parts(rule), rate=rule.level, warn=rule.warn)
    good = check_scores(scores.good)
    threshold = _choose(rule, rule.level, scores)
    warning = _warning_threshold(rule, scores, threshold)
    categories, without = _of_categories(rule, scores)
    calibration = Calibration(
        method=rule.method,
        threshold=threshold.value,
        pixel_threshold=_pixel_threshold(rule, scores, threshold) if scores.peaks else None,
        level=threshold.level,
        good_images=1 if scores.copies else len(good),
        defect_images=len(scores.defective),
        expected_false_alarm=_expected_rate(rule, scores, threshold),
        score_range=(float(good.min()), float(good.max())),
        promised_false_alarm=_guaranteed_rate(rule, scores),
        warn_threshold=warning.value if warning else None,
        warn_level=warning.level if warning else None,
        evidence=scores,
        probability=fit_probability(scores),
        false_alarm_interval=None if scores.copies else smooth_tail.false_alarm_interval(good, threshold.value),
        categories=categories,
    )
    notes = [chosen.note for chosen in (threshold, warning) if chosen is not None and chosen.note is not None]
    notes += [*without, *_group_notes(rule, scores), *_extreme_threshold_notes(scores, threshold.value)]
    return calibration, tuple(notes)


def _of_categories(rule: ThresholdRule, scores: CalibrationScores) -> tuple[dict[str, Calibration], tuple[str, ...]]:
    """Return the calibration of each category by the same rule, and notes on those that can have none."""
    found: dict[str, Calibration] = {}
    notes = []
    for name, own in scores.categories.items():
        try:
            found[name] = calibrate(rule, own)[0]
        except (DataError, UsageError) as error:
            notes.append(f"{name} has no threshold of its own but that of all categories: {error.message}")
    return found, tuple(notes)


def _method_for_parts(rule: ThresholdRule) -> str:
    """Return the method of a rule for parts of a line, some of which may be defective."""
    methods = {"smooth": contaminated.METHOD, contaminated.METHOD: contaminated.METHOD, "conformal": "conformal"}
    if rule.method not in methods:
        raise UsageError(
            f"The method {rule.method} needs images that are known to be good, and the parts of a line are not.",
            "Use --max-false-alarm, or name good images with --good DIR.",
        )
    return methods[rule.method]


def leave_group_out(rule: ThresholdRule, scores: CalibrationScores) -> list[new_groups.GroupScores]:
    """Return the false alarms of each group of the calibration scores if the other groups set the threshold.

    Returns:
        One entry for each group, most false alarms first; empty with too few groups, or if the rule needs defects.
    """
    fewest = _FEWEST_GROUPS + (rule.method == new_groups.METHOD)
    if rule.method not in (*UNSUPERVISED, new_groups.METHOD) or len(set(scores.groups)) < fewest:
        return []

    def choose(others: Scores, groups: Sequence[str]) -> float:
        if rule.method == new_groups.METHOD:
            return new_groups.by_new_group(others, groups, rule.level).value
        return UNSUPERVISED[rule.method](others, rule.level).value

    return new_groups.leave_group_out(np.array(scores.good), scores.groups, choose)


def _group_notes(rule: ThresholdRule, scores: CalibrationScores) -> list[str]:
    left_out = [] if rule.method == new_groups.METHOD else leave_group_out(rule, scores)
    if not left_out or not new_groups.groups_differ(np.array(scores.good), scores.groups):
        return []
    return [new_groups.difference_text(left_out)]


def _expected_rate(rule: ThresholdRule, scores: CalibrationScores, threshold: Threshold) -> float:
    if rule.method == new_groups.METHOD:
        return float(new_groups.exceedance(np.array(scores.good), scores.groups, np.array([threshold.value]))[0])
    if rule.method == "smooth":
        return smooth_tail.expected_rate(np.array(scores.good), threshold.value)
    return conformal.expected_rate(np.array(scores.good), threshold.value)


def _choose(rule: ThresholdRule, level: float, scores: CalibrationScores) -> Threshold:
    good = np.array(scores.good)
    if rule.method in UNSUPERVISED:
        return UNSUPERVISED[rule.method](good, level)
    if rule.method == FIXED:
        return Threshold(level, level)
    if rule.method == new_groups.METHOD:
        return new_groups.by_new_group(good, scores.groups, level)
    if rule.method not in SUPERVISED:
        raise unknown_name("method", rule.method, METHODS)
    if not scores.defective:
        raise UsageError(
            f"The method {rule.method} needs scores of labelled defective images, and there are none.",
            "Give a folder of them with --defects DIR, or scores of labelled images with --scores DIR.",
        )
    defective = np.array(scores.defective)
    if rule.method == "f1":
        return supervised.by_best_f1(good, defective)
    if rule.method == "cost":
        return supervised.by_cost(good, defective, rule.costs)
    method = supervised.by_precision if rule.method == "precision" else supervised.by_recall
    return method(good, defective, level)


def _warning_threshold(rule: ThresholdRule, scores: CalibrationScores, threshold: Threshold) -> Threshold | None:
    if rule.warn is None:
        return None
    if rule.method in _WITHOUT_LEVEL:
        raise UsageError(
            f"The method {rule.method} has only one best threshold, so --warn-at cannot choose a second one.",
            "Choose another method for --warn-at, such as conformal.",
        )
    warning = _choose(rule, rule.warn, scores)
    if warning.value >= threshold.value:
        raise UsageError(
            f"The warning threshold {warning.value:.6g} is not below the rejection threshold {threshold.value:.6g}.",
            "Give --warn-at a level that flags more images.",
        )
    return warning


def _pixel_threshold(rule: ThresholdRule, scores: CalibrationScores, threshold: Threshold) -> float:
    """Apply the rule to the peaks of good maps; for other methods, flag the same share of good images as the scores."""
    peaks = check_scores(scores.peaks)
    if rule.method in UNSUPERVISED:
        return UNSUPERVISED[rule.method](peaks, rule.level).value
    passing = np.mean(np.array(scores.good) <= threshold.value)
    return float(np.quantile(peaks, passing, method="higher"))


def _guaranteed_rate(rule: ThresholdRule, scores: CalibrationScores) -> float | None:
    """Return the guaranteed false-alarm rate, or None; scores out of fold have a higher one, for groups too.

    Scores of groups have one only by the method for new groups: images of a new group are not exchangeable with them.
    Altered copies of a single image have none.
    """
    if scores.copies or rule.method not in _GUARANTEED or (scores.groups and rule.method != new_groups.METHOD):
        return None
    count = len(scores.good)
    if rule.method == new_groups.METHOD:
        rate, groups = new_groups.promised_rate(scores.groups, rule.level), len(set(scores.groups))
        return conformal.cross_conformal_bound(rate, groups, min(scores.folds, groups)) if scores.folds else rate
    if rule.method == "conformal":
        rate = conformal.guaranteed_rate(count, rule.level)
    else:  # a percentile is at or above the score of this rank, for every distribution
        rank = int(np.floor((count - 1) * rule.level / 100)) + 1
        rate = (count + 1 - rank) / (count + 1)
    return conformal.cross_conformal_bound(rate, count, scores.folds) if scores.folds else rate


def _extreme_threshold_notes(scores: CalibrationScores, threshold: float) -> list[str]:
    """Return notes if the threshold rejects all good images or passes all defective ones."""
    if threshold < min(scores.good):
        return [f"The threshold {threshold:.6g} is below all good scores: all good images would be rejected."]
    if scores.defective and threshold >= max(scores.defective):
        return [f"The threshold {threshold:.6g} is at or above all defective scores: no defect would be found."]
    return []
