"""Fitting a run's detector again on parts of its good images: folds, and growing subsets.

Everything is as the run had it, but for the images learned from; nothing is written to the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from adctl.calibration.calibration_scores import score_samples
from adctl.config import LoadedSettings, TrainSettings, names_of
from adctl.data.folds import assign_folds
from adctl.errors import UsageError
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.predict import CollectedScores, calibration_scores_of
from adctl.scoring.tta import with_views
from adctl.training.resume import SETTINGS, check_data, settings_of
from adctl.training.single_run import plan_training, refit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adctl.config import CalibrateSettings
    from adctl.detectors.base import Detector
    from adctl.model_file import ModelHeader
    from adctl.progress import Reporter
    from adctl.records import CalibrationScores, Sample

__all__ = ["Refitter", "assign_folds", "cross_fit"]

_SHARED = ("device", "gpu", "workers")


class Refitter:
    """Fits the detector of a run again.

    Args:
        model: A model file in its run.
        loaded: Settings of `adctl calibrate`, which say where to compute.
        reporter: Told how far it is.

    Raises:
        UsageError: The model file lies outside its run.
        DataError: The run's images have changed.
    """

    def __init__(self, model: Path, loaded: LoadedSettings[CalibrateSettings], reporter: Reporter) -> None:
        run = model.parent
        if not (run / SETTINGS).is_file():
            raise UsageError(
                f"{model} lies outside its run, so how it was fitted is not known.",
                "Name the run's folder, or its model file where it was made, with --model.",
            )
        self._calibrate = loaded.settings
        self._reporter = reporter
        self._settings = settings_of(run, _where_to_compute(loaded)).settings
        self._plan = plan_training(self._settings)
        check_data(run, self._plan.split)
        self.split = self._plan.split
        self.gradient_trained = bool(self.split.validation)

    def fit(self, samples: Sequence[Sample]) -> tuple[Detector, ModelHeader]:
        """A detector fitted on these good images, and its header without a calibration."""
        return refit(self._settings, self._plan, tuple(samples), self._reporter)

    def score(
        self, detector: Detector, header: ModelHeader, samples: Sequence[Sample], views: tuple[str, ...]
    ) -> CollectedScores:
        """What a fitted detector says of images."""
        runtime = with_views(TorchRuntime.of(detector, header, self._plan.device.device), views)
        return score_samples(runtime, samples, self._calibrate, self._reporter, "scoring")


def cross_fit(
    refitter: Refitter, folds: int, views: tuple[str, ...]
) -> tuple[Detector, ModelHeader, CalibrationScores]:
    """Score every good image by a model that has not learned from it, and fit one model on all of them.

    The images learned from and those held out are pooled and cut into folds; a fold is scored by a model fitted on
    the others (cross-conformal prediction, Vovk 2015). The model that is kept learns from all, so no image is wasted.

    What that promises: nothing free of assumptions. If every fold's own model took part in scoring new images, about
    twice the rate would be the most called out (CV+, Barber et al. 2021: twice the rate and a term that vanishes as
    images grow). The one model kept here has seen more images than those, which usually makes new good images look
    less strange, not more: so the rate tends to be met in practice, and is not proved.

    Args:
        refitter: Of the run.
        folds: How many.
        views: Of test-time augmentation.

    Raises:
        DataError: There are fewer different images than folds.
    """
    pool = [*refitter.split.train, *refitter.split.calibration]
    found = []
    for fold in assign_folds(pool, refitter.split.digests, folds):
        inside = {sample.key for sample in fold}
        detector, header = refitter.fit([sample for sample in pool if sample.key not in inside])
        found.append(refitter.score(detector, header, fold, views))
    scores, peaks = (np.concatenate([getattr(one, name) for one in found]) for name in ("scores", "peaks"))
    detector, header = refitter.fit(pool)
    return detector, header, calibration_scores_of(CollectedScores(scores, peaks, ()), folds=folds, views=views)


def _where_to_compute(loaded: LoadedSettings[CalibrateSettings]) -> LoadedSettings[TrainSettings]:
    """Only what was asked for now: the rest is the run's."""
    given = {name: getattr(loaded.settings, name) for name in _SHARED if name in loaded.given}
    origins = {name: "calibrate" if name in given else "default" for name in names_of(TrainSettings)}
    return LoadedSettings(TrainSettings(**given), origins)
