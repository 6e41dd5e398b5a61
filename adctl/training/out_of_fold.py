"""Scores of good images that a detector did not learn from, although the saved model learns from all of them.

They set the threshold of detectors that are fitted in one pass, so that no good image is held out: cross-conformal
prediction (Vovk 2015), with one image in each fold the jackknife (Barber et al. 2021). Copies of an image and images of
a group are left out together. PaDiM and PatchCore compute these scores from the fitted model, unless a group is large.
Other detectors are fitted again for each fold, with features of a frozen backbone and decoded images kept in memory.
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from adctl.data.folds import assign_folds
from adctl.data.split import ranked_units
from adctl.detectors.components.rotations import ALTERATIONS, altered
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.predict import CollectedScores, collect
from adctl.training.fitting import refit
from adctl.training.leave_out import can_leave_out, count_tiles
from adctl.training.plan import CALIBRATION_SHARE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from adctl.config import TrainSettings
    from adctl.data.split import Split
    from adctl.detectors.base import Detector, Prediction
    from adctl.model_file import ModelHeader
    from adctl.progress import Reporter
    from adctl.records import Sample
    from adctl.training.plan import TrainingPlan

log = logging.getLogger(__name__)

_BATCH = 8
_FEW_IMAGES = 50
_FOLDS_OF_FEW, _FOLDS = 10, 5
"""Folds of detectors that are fitted again: more for few images, whose models change more without a fold."""


def units_to_hold_out(detector: Detector, split: Split, known: int = 0) -> list[list[Sample]]:
    """Return the images, each with its copies, that `Detector.held_out` can leave out in turn; empty if it cannot.

    Args:
        detector: Detector that was just fitted or updated.
        split: Split whose training part it learned from last.
        known: Number of other images that it has learned from before.
    """
    usable = detector.can_hold_out() and can_leave_out(detector.input, split, known)
    return ranked_units(split.train, split.digests) if usable else []


def count_refits(detector: Detector, split: Split) -> int:
    """Return how often a detector that is fitted in one pass will be fitted again for the scores out of fold."""
    at_once = detector.holds_out(detector.config) and can_leave_out(detector.input, split)
    return 0 if split.calibration or is_single(split) or at_once else len(folds_to_refit(split))


def is_single(split: Split) -> bool:
    """Return whether the training part holds one image alone, or identical copies of it."""
    return len({split.digests[sample.key] for sample in split.train}) == 1


def folds_to_refit(split: Split) -> list[list[Sample]]:
    """Divide the training images into folds for a detector that is fitted again without each of them."""
    units = len(ranked_units(split.train, split.digests))
    return assign_folds(split.train, split.digests, min(units, _FOLDS_OF_FEW if units < _FEW_IMAGES else _FOLDS))


def scores_without_refitting(
    runtime: HeldOutRuntime, split: Split, folds: Sequence[Sequence[Sample]], reporter: Reporter, workers: int
) -> CollectedScores:
    """Score each training image as the detector fitted without its fold would.

    Args:
        runtime: Runtime of the detector that was just fitted.
        split: Split whose training part it was fitted on.
        folds: Images that are left out together.
        reporter: Receiver of progress.
        workers: Number of threads that read images.
    """
    number_of = {sample.key: number for number, sample in enumerate(split.train)}
    scored = []
    if runtime.input.tiled:
        with reporter.stage("calibrating"):
            return _tiled_scores(runtime, split, folds, workers)
    with reporter.stage("calibrating"):
        for together, several in itertools.groupby(sorted(folds, key=len), len):
            units, size = list(several), max(1, _BATCH // together)
            for batch in (units[start : start + size] for start in range(0, len(units), size)):
                samples = [sample for fold in batch for sample in fold]
                runtime.numbers, runtime.together = [number_of[sample.key] for sample in samples], together
                scored.append(collect(runtime, samples, batch_size=len(samples), workers=workers))
    return CollectedScores.concatenate(scored)


def _tiled_scores(
    runtime: HeldOutRuntime, split: Split, folds: Sequence[Sequence[Sample]], workers: int
) -> CollectedScores:
    """Score each training image as the detector fitted without its tiles would."""
    counts = count_tiles(runtime.input, split)
    ends = dict(zip((sample.key for sample in split.train), itertools.accumulate(counts), strict=True))
    count_of = dict(zip(ends, counts, strict=True))
    scored = []
    for sample in itertools.chain.from_iterable(folds):
        end, runtime.together = ends[sample.key], count_of[sample.key]
        runtime.numbers = range(end - runtime.together, end)
        scored.append(collect(runtime, [sample], batch_size=runtime.together, workers=workers))
    return CollectedScores.concatenate(scored)


def scores_by_refitting(
    pool: Sequence[Sample],
    folds: Sequence[Sequence[Sample]],
    fit: Callable[[Sequence[Sample]], tuple[Detector, ModelHeader]],
    score: Callable[[Detector, ModelHeader, Sequence[Sample]], CollectedScores],
) -> CollectedScores:
    """Score the images of each fold with a detector that is fitted on the other folds.

    Args:
        pool: Images of all folds.
        folds: The folds.
        fit: Fits a new detector on images.
        score: Scores images with it.
    """
    scored = []
    for fold in folds:
        keys = {sample.key for sample in fold}
        detector, header = fit([sample for sample in pool if sample.key not in keys])
        scored.append(score(detector, header, fold))
    return CollectedScores.concatenate(scored)


class HeldOutRuntime(TorchRuntime):
    """Runtime that scores training images as if the detector had not learned from them.

    Attributes:
        numbers: Positions of the images of the next batch among the training images.
        together: Number of consecutive images that are left out together.
    """

    fixed_graph = False
    numbers: Sequence[int] = ()
    together: int = 1

    def _forward(self, images: Tensor) -> Prediction:
        return self._detector.held_out(images, self.numbers, self.together)


class AlteredRuntime(TorchRuntime):
    """Runtime that scores altered copies in place of images.

    Attributes:
        number: Number of the alteration, below `ALTERATIONS`.
    """

    fixed_graph = False
    number: int = 0

    def _forward(self, images: Tensor) -> Prediction:
        return self._network(altered(images, self.number, self._detector.config.channels))


def score_copies(
    detector: Detector, header: ModelHeader, settings: TrainSettings, plan: TrainingPlan, reporter: Reporter
) -> CollectedScores:
    """Score altered copies of the only image that a detector learned from."""
    runtime, scored = AlteredRuntime.of(detector, header, plan.device.device), []
    with reporter.stage("calibrating"):
        for number in range(ALTERATIONS):
            runtime.number = number
            scored.append(collect(runtime, plan.split.train[:1], batch_size=1, workers=settings.workers))
    return replace(CollectedScores.concatenate(scored), groups=())


def score_out_of_fold(
    detector: Detector, header: ModelHeader, settings: TrainSettings, plan: TrainingPlan, reporter: Reporter
) -> tuple[CollectedScores, int]:
    """Score each training image as a detector that did not learn from it would; also return the number of folds."""
    device, folds = plan.device.device, units_to_hold_out(detector, plan.split)
    if folds:
        runtime = HeldOutRuntime.of(detector, header, device)
        with shared_features() as features, features.uncounted():
            good = scores_without_refitting(runtime, plan.split, folds, reporter, settings.workers)
        return good, len(folds)

    def fit_others(samples: Sequence[Sample]) -> tuple[Detector, ModelHeader]:
        return refit(replace(settings, devices=None), plan, tuple(samples), reporter)

    def score_fold(fitted: Detector, its_header: ModelHeader, samples: Sequence[Sample]) -> CollectedScores:
        runtime = TorchRuntime.of(fitted, its_header, device)
        return collect(runtime, samples, batch_size=settings.batch_size, workers=settings.workers)

    folds = folds_to_refit(plan.split)
    log.info(
        "For the threshold, the detector is fitted %d more times, each time without a part of the images: the training "
        "takes two to four times as long. --calibration-share %g holds out images instead.",
        len(folds),
        CALIBRATION_SHARE,
    )
    _warn_of_large_folds(folds)
    with shared_features() as features, features.uncounted():
        good = scores_by_refitting(plan.split.train, folds, fit_others, score_fold)
    return good, len(folds)


def _warn_of_large_folds(folds: Sequence[Sequence[Sample]]) -> None:
    """Warn if a fit without one of the folds learns from a minority of the images: groups are of very unequal size."""
    images, largest = sum(map(len, folds)), max(map(len, folds))
    if largest > images / 2:
        log.warning(
            "One group has %d of the %d images, so the threshold rests on a fit to the other %d: it is too high, and "
            "defects may pass. Give smaller groups, or leave out --group.",
            largest,
            images,
            images - largest,
        )
