"""Calibration of an updated model by scores of images that the update did not learn.

The rule is that of the present model. If only the threshold is new, the rule guarantees a rate of false alarms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adctl.evaluation.candidate import promising_rule, rule_of
from adctl.scoring.predict import CollectedScores, calibration_scores_of
from adctl.thresholds.contaminated import FEWEST_PARTS, defective_parts
from adctl.thresholds.methods import SUPERVISED, ThresholdRule, calibrate
from adctl.training.present_model import THRESHOLD_ALONE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adctl.data.split import Split
    from adctl.detectors.base import Detector
    from adctl.engine.history import FitReport
    from adctl.records import Calibration, CalibrationScores, Sample
    from adctl.training.present_model import PresentModel
    from adctl.training.reviews import Way

_ENOUGH_SCORES = 99
"""Number of scores of new images that need no earlier scores beside them: it can promise 1 % false alarms."""


@dataclass(frozen=True)
class UpdatedDetector:
    """Updated detector before it is saved.

    Attributes:
        way: See `UpdateResult`.
        detector: The detector.
        report: Report of its fit.
        new: New images that it learned from.
        split: All images that it learned from or is calibrated on.
        scores: Scores of good images that it did not learn from.
        folds: Number of detectors that gave them, each without the images it scored; 0 if the candidate gave them.
        views: Views of test-time augmentation of the scores.
        notes: Remarks on the images.
    """

    way: Way
    detector: Detector
    report: FitReport
    new: tuple[Sample, ...]
    split: Split
    scores: CollectedScores
    folds: int
    views: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def calibrate_update(
    present: PresentModel, candidate: UpdatedDetector, defects: Mapping[str, float], doubts: CollectedScores | None
) -> tuple[Calibration, tuple[str, ...]]:
    """Compute the calibration of an update.

    Args:
        present: Present model, with a calibration.
        candidate: Updated detector.
        defects: Its scores of the reviewed defects.
        doubts: Its scores of good images that were set aside as unlike the others.

    Returns:
        The calibration, and notes for the user on what it rests on.
    """
    known = present.calibration
    rule, note = rule_of(known, defects=bool(defects))
    if candidate.way == THRESHOLD_ALONE:
        rule, note = promising_rule(known), None
    notes = [*candidate.notes, *([note] if note else [])]
    if known.views != candidate.views:
        notes.append("The candidate is calibrated without the views of test-time augmentation of the present model.")
    scores, doubted = candidate.scores, 0
    if doubts is not None and len(doubts.keys) + len(scores.keys) >= FEWEST_PARTS:
        # Leaving out the highest scores would break the promise; the method for unlabelled parts allows for defects.
        scores, doubted = CollectedScores.concatenate([scores, doubts]), len(doubts.keys)
    evidence = calibration_scores_of(scores, folds=candidate.folds, views=candidate.views)
    if _needs_earlier_scores(present, candidate, len(evidence.good)):
        notes.append(_note_on_earlier_scores(candidate.detector, len(evidence.good), known.good_images))
        doubted += defective_parts(len(known.evidence.good), known.evidence.contaminated or 0.0)
        evidence = _pooled(evidence, known.evidence)
    if doubted:
        evidence = replace(evidence, contaminated=doubted / len(evidence.good), groups=())
        rule = rule if rule.method in ("smooth", "conformal") else ThresholdRule()
    elif rule.method in SUPERVISED or known.evidence.defective:
        evidence = replace(evidence, defective=tuple(sorted(defects.values())))
    calibration, of_rule = calibrate(rule, evidence)
    return calibration, (*notes, *of_rule)


def _needs_earlier_scores(present: PresentModel, candidate: UpdatedDetector, count: int) -> bool:
    """Return whether the new scores are too few alone, and none is of an image that gave an earlier score."""
    if candidate.way == THRESHOLD_ALONE or present.recalibrated:
        return False
    known = present.calibration
    earlier = set() if present.split is None else {sample.key for sample in present.split.calibration}
    unlike = known.views or known.evidence.copies  # scores of another kind
    return count < _ENOUGH_SCORES and not unlike and earlier.isdisjoint(candidate.scores.keys)


def _note_on_earlier_scores(detector: Detector, new: int, earlier: int) -> str:
    which = (
        "which are upper bounds: the rate of false alarms holds, and may be lower"
        if detector.update_lowers_scores
        else "which are those of the present model: the threshold is provisional"
    )
    return f"{new} scores of new images are few: the threshold also rests on {earlier} earlier scores, {which}."


def _pooled(new: CalibrationScores, earlier: CalibrationScores) -> CalibrationScores:
    """Return the scores of both; their groups are not comparable."""
    return replace(
        new,
        good=tuple(sorted((*new.good, *earlier.good))),
        peaks=tuple(sorted((*new.peaks, *earlier.peaks))),
        groups=(),
        folds=max(new.folds, earlier.folds),
        inputs=earlier.inputs or new.inputs,
    )
