"""Images among the good ones that are unlike all others, and so may be defective.

A PatchCore of all good images scores each of them as if it had not learned from it. The highest scores, as many as
there may be defective images, are then given anew by a PatchCore without all of these images, so that two images with
the same defect cannot vouch for each other. An image is unlike the others if it scores above the limit of an
exponential tail of the likely good scores; see `adctl.thresholds.contaminated`.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from adctl.config import TrainSettings
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.detectors.registry import detector_class
from adctl.errors import DataError
from adctl.progress import SILENT
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.predict import calibration_scores_of, collect
from adctl.thresholds import contaminated
from adctl.training.default_threshold import default_calibration
from adctl.training.fitting import refit
from adctl.training.out_of_fold import score_out_of_fold
from adctl.training.reviews import SetAside

if TYPE_CHECKING:
    from adctl.detectors.base import Detector
    from adctl.model_file import ModelHeader
    from adctl.progress import Reporter
    from adctl.records import Sample
    from adctl.training.plan import TrainingPlan

log = logging.getLogger(__name__)

_REFERENCE = "patchcore"
"""Detector that judges which images are unlike others."""

_EXPECTED = 0.5
"""Number of good images that are expected beyond the limit, whatever the number of images."""


def leave_out_unlike(settings: TrainSettings, plan: TrainingPlan, reporter: Reporter) -> TrainingPlan:
    """Return the plan without good images that are unlike all others, at most the share of `contaminated`.

    Args:
        settings: Settings of the training.
        plan: Their plan.
        reporter: Receiver of progress.

    Raises:
        DataError: There are too few images to tell.
        TrainingError: Memory is too small.
    """
    split = plan.split
    good = tuple(sorted((*split.train, *split.validation, *split.calibration), key=lambda sample: sample.key))
    share = settings.contaminated or 0.0
    if len(good) < contaminated.FEWEST_PARTS:
        raise DataError(
            f"{len(good)} good images are too few to find defective ones among them.",
            f"Take at least {contaminated.FEWEST_PARTS}, or leave out --contaminated.",
        )
    with reporter.stage("looking for images unlike the others"), shared_features():
        scores = _scores(settings, plan, good, contaminated.defective_parts(len(good), share))
    limit = contaminated.by_trimmed_tail(np.array(list(scores.values())), _EXPECTED / len(good), share).value
    unlike = sorted((sample for sample in good if scores[sample.key] > limit), key=lambda one: -scores[one.key])
    for sample in unlike:
        log.warning("%s is left out: it is unlike the other good images. It may be defective.", sample.path)
    keys = {sample.key for sample in unlike}
    train, validation, calibration = (
        tuple(sample for sample in part if sample.key not in keys)
        for part in (split.train, split.validation, split.calibration)
    )
    split = replace(split, train=train, validation=validation, calibration=calibration)
    return replace(plan, split=split, set_aside=tuple(_set_aside(one, scores[one.key], limit) for one in unlike))


def _scores(settings: TrainSettings, plan: TrainingPlan, good: tuple[Sample, ...], defective: int) -> dict[str, float]:
    """Score each image by a detector without it, the highest `defective` ones by a detector without all of them."""
    given, part = _reference(settings, replace(plan, split=replace(plan.split, train=good)))
    detector, header = refit(given, part, good)
    found = score_out_of_fold(detector, header, given, part, SILENT)[0].by_key()
    suspects = sorted(found, key=found.__getitem__)[-defective:] if defective else []
    if not suspects:
        return found
    others = tuple(sample for sample in good if sample.key not in suspects)
    runtime = TorchRuntime.of(*refit(given, part, others), part.device.device)
    again = [sample for sample in good if sample.key in suspects]
    return found | collect(runtime, again, batch_size=given.batch_size, workers=given.workers).by_key()


def _set_aside(sample: Sample, score: float, limit: float) -> SetAside:
    detail = f"It scores {score:.4g} by a model without it; good images score up to {limit:.4g}. It may be a defect."
    return SetAside(str(sample.path), sample.key, "unlike the others", detail, score, limit)


def fit_reference(settings: TrainSettings, plan: TrainingPlan, reporter: Reporter) -> tuple[Detector, ModelHeader]:
    """Fit a PatchCore to the training images of any detector, and calibrate it out of fold; nothing is written.

    Args:
        settings: Settings that compute: device, threads, batch size.
        plan: Plan of the other detector; size, channels and region of its input are kept, tiles and scales are not.
        reporter: Receiver of progress.

    Raises:
        TrainingError: Memory is too small.
    """
    given, part = _reference(settings, plan)
    detector, header = refit(given, part, part.split.train, reporter)
    scores, folds = score_out_of_fold(detector, header, given, part, reporter)
    return detector, header.with_calibration(default_calibration(given, calibration_scores_of(scores, folds=folds)))


def _reference(settings: TrainSettings, plan: TrainingPlan) -> tuple[TrainSettings, TrainingPlan]:
    """Return the settings of a PatchCore and its plan with the training images of another plan."""
    shared = {"image_size", "channels", "resize", "bit_depth", "roi"}
    given = TrainSettings(arch=_REFERENCE, workers=settings.workers, batch_size=settings.batch_size)
    config = detector_class(_REFERENCE).Config(**plan.config.model_dump(include=shared))
    return given, replace(
        plan, config=config, split=replace(plan.split, validation=(), calibration=()), auxiliary=None, defects=()
    )
