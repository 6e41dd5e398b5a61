"""Threshold that a trained model has by default; `adctl calibrate` replaces it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.predict import CollectedScores, calibration_scores_of, collect
from adctl.thresholds import contaminated, new_groups
from adctl.thresholds.methods import ThresholdRule, calibrate
from adctl.training.out_of_fold import is_single, score_copies, score_out_of_fold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.config import TrainSettings
    from adctl.detectors.base import Detector
    from adctl.model_file import ModelHeader
    from adctl.progress import Reporter
    from adctl.records import Calibration, CalibrationScores, Sample
    from adctl.training.plan import TrainingPlan

log = logging.getLogger(__name__)


NEW_GROUPS_RATE = 0.01
"""False-alarm rate of the threshold for a new group."""


def score_held_out(
    detector: Detector, header: ModelHeader, settings: TrainSettings, plan: TrainingPlan, reporter: Reporter
) -> CalibrationScores:
    """Score the images that set the threshold with a detector that did not learn from them.

    These are the calibration images or, if there are none, the training images out of fold; of a single training image,
    altered copies. Images that were left out as unlike the others are scored too: a threshold without the highest
    scores of good images would break its promise, so the method for unlabelled parts, which allows for defects among
    them, sets it.
    """
    if plan.split.calibration:
        good, folds = _score(detector, header, settings, plan, plan.split.calibration, reporter), 0
    elif is_single(plan.split):
        copies = calibration_scores_of(score_copies(detector, header, settings, plan, reporter))
        return replace(copies, copies=len(copies.good))
    else:
        good, folds = score_out_of_fold(detector, header, settings, plan, reporter)
    if not plan.left_out or len(good.keys) + len(plan.left_out) < contaminated.FEWEST_PARTS:
        return calibration_scores_of(good, folds=folds, by_category=settings.one_model)
    doubtful = _score(detector, header, settings, plan, plan.left_out, reporter)
    parts = CollectedScores.concatenate([good, doubtful])
    share = len(doubtful.keys) / len(parts.keys)
    return replace(calibration_scores_of(parts, folds=folds), contaminated=share, groups=())


def _score(
    detector: Detector,
    header: ModelHeader,
    settings: TrainSettings,
    plan: TrainingPlan,
    samples: Sequence[Sample],
    reporter: Reporter,
) -> CollectedScores:
    runtime = TorchRuntime.of(detector, header, plan.device.device)
    with reporter.stage("calibrating"):
        return collect(runtime, samples, batch_size=settings.batch_size, workers=settings.workers)


def default_calibration(settings: TrainSettings, scores: CalibrationScores) -> Calibration:
    """Compute the calibration by the default rule; `adctl calibrate` applies other rules later."""
    # A fold may hold out a single group; the calibration of the whole cross-validation has all of them.
    for_groups = settings.new_groups and settings.fold is None
    rule = ThresholdRule(new_groups.METHOD, NEW_GROUPS_RATE) if for_groups else ThresholdRule()
    calibration, notes = calibrate(rule, scores)
    for note in notes:
        log.log(logging.WARNING if scores.groups else logging.INFO, "%s", note)
    return calibration
