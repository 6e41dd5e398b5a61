"""Images among the good ones that are unlike all others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from adctl.config import TrainSettings
from adctl.detectors.registry import detector_class
from adctl.engine.context import FitContext
from adctl.training.default_threshold import default_calibration
from adctl.training.fitting import fit_new, image_sources
from adctl.training.out_of_fold import (
    score_out_of_fold,
)

if TYPE_CHECKING:
    from adctl.detectors.base import Detector
    from adctl.model_file import ModelHeader
    from adctl.progress import Reporter
    from adctl.training.plan import TrainingPlan


_REFERENCE = "patchcore"
"""Detector that judges which images are unlike others, for detectors that must be trained to do so."""


def fit_reference(settings: TrainSettings, plan: TrainingPlan, reporter: Reporter) -> tuple[Detector, ModelHeader]:
    """Fit a PatchCore to the training images of any detector, and calibrate it out of fold; nothing is written.

    Args:
        settings: Settings that compute: device, threads, batch size.
        plan: Plan of the other detector; size, channels and region of its input are kept, tiles and scales are not.
        reporter: Receiver of progress.

    Raises:
        TrainingError: Memory is too small.
    """
    shared = {"image_size", "channels", "resize", "bit_depth", "roi"}
    given = TrainSettings(arch=_REFERENCE, workers=settings.workers, batch_size=settings.batch_size)
    config = detector_class(_REFERENCE).Config(**plan.config.model_dump(include=shared))
    part = replace(plan, config=config, split=replace(plan.split, validation=(), calibration=()))
    detector, header, _ = fit_new(given, part, FitContext(reporter), image_sources(given, part))
    scores = score_out_of_fold(detector, header, given, part, reporter)
    return detector, header.with_calibration(default_calibration(given, scores))
