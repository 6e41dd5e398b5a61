"""Threshold that a trained model has by default; `adctl calibrate` replaces it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.predict import calibration_scores_of, collect
from adctl.thresholds import new_groups
from adctl.thresholds.methods import ThresholdRule, calibrate

if TYPE_CHECKING:
    from adctl.config import TrainSettings
    from adctl.detectors.base import Detector
    from adctl.model_file import ModelHeader
    from adctl.progress import Reporter
    from adctl.records import Calibration, CalibrationScores
    from adctl.training.plan import TrainingPlan

log = logging.getLogger(__name__)


NEW_GROUPS_RATE = 0.01
"""False-alarm rate of the threshold for a new group."""


def score_calibration_images(
    detector: Detector, header: ModelHeader, settings: TrainSettings, plan: TrainingPlan, reporter: Reporter
) -> CalibrationScores:
    """Score the calibration images with the fitted detector."""
    runtime = TorchRuntime.of(detector, header, plan.device.device)
    with reporter.stage("calibrating"):
        good = collect(runtime, plan.split.calibration, batch_size=settings.batch_size, workers=settings.workers)
    return calibration_scores_of(good)


def default_calibration(settings: TrainSettings, scores: CalibrationScores) -> Calibration:
    """Compute the calibration by the default rule; `adctl calibrate` applies other rules later."""
    # A fold may hold out a single group; the calibration of the whole cross-validation has all of them.
    for_groups = settings.new_groups and settings.fold is None
    rule = ThresholdRule(new_groups.METHOD, NEW_GROUPS_RATE) if for_groups else ThresholdRule()
    calibration, notes = calibrate(rule, scores)
    for note in notes:
        log.log(logging.WARNING if scores.groups else logging.INFO, "%s", note)
    return calibration
