"""Refitting of a run's detector on parts of its good images: folds, or subsets of increasing size.

All settings are those of the run; only the training images differ. The folder of the run is not changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl import run_folder
from adctl.calibration.calibration_scores import score_samples
from adctl.config import LoadedSettings, TrainSettings, names_of
from adctl.data.folds import assign_folds
from adctl.data.loader import keep_images
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.errors import UsageError
from adctl.model_file import run_of
from adctl.runtimes.torch import TorchRuntime
from adctl.scoring.predict import calibration_scores_of
from adctl.scoring.tta import with_views
from adctl.training.fitting import refit
from adctl.training.out_of_fold import scores_by_refitting
from adctl.training.plan import plan_training
from adctl.training.resume import check_data, load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adctl.config import CalibrateSettings
    from adctl.detectors.base import Detector
    from adctl.model_file import ModelHeader
    from adctl.progress import Reporter
    from adctl.records import CalibrationScores, Sample
    from adctl.scoring.predict import CollectedScores


_COMPUTE_SETTINGS = ("device", "gpu", "workers")


class Refitter:
    """Refits the detector of a run on other images.

    Args:
        model: Model file in the folder of its run.
        loaded: Settings of `adctl calibrate`, with the device and the number of threads.
        reporter: Receiver of progress reports.

    Raises:
        UsageError: The model file is not in the folder of its run.
        DataError: The images of the run have changed, or its manifest is damaged.
    """

    def __init__(self, model: Path, loaded: LoadedSettings[CalibrateSettings], reporter: Reporter) -> None:
        run = run_of(model, loaded.settings.runs)
        if not (run / run_folder.SETTINGS).is_file():
            raise UsageError(
                f"{model} is not in the folder of its training run, so its training settings are unknown.",
                "Name the folder of the run, or the model file in it, with --model.",
            )
        run_folder.read_manifest(run)  # raises if the run is damaged
        self._calibrate = loaded.settings
        self._reporter = reporter
        self._settings = load_settings(run, _compute_settings(loaded)).settings
        if self._settings.update is not None:
            raise UsageError(
                f"{model} was updated by 'adctl train --update', so it cannot be trained again on parts of its images.",
                "Name good images that it was not trained on with --good DIR, or train a new model.",
            )
        self._plan = plan_training(self._settings)
        check_data(run, self._plan.split)
        self.split = self._plan.split
        self.gradient_trained = bool(self.split.validation)

    def fit(self, samples: Sequence[Sample]) -> tuple[Detector, ModelHeader]:
        """Fit a detector on these good images; return it with its header, which has no calibration."""
        return refit(self._settings, self._plan, tuple(samples), self._reporter)

    def score(
        self, detector: Detector, header: ModelHeader, samples: Sequence[Sample], views: tuple[str, ...]
    ) -> CollectedScores:
        """Score images with a fitted detector."""
        runtime = with_views(TorchRuntime.of(detector, header, self._plan.device.device), views)
        return score_samples(runtime, samples, self._calibrate, self._reporter, "scoring")


def cross_fit(
    refitter: Refitter, folds: int, views: tuple[str, ...]
) -> tuple[Detector, ModelHeader, CalibrationScores]:
    """Score every good image with a model that was not trained on it, and fit one model on all good images.

    Training and held-out images are pooled and split into folds. Each fold is scored by a model fitted on the other
    folds (cross-conformal prediction, Vovk 2015). The model that is saved is fitted on all images.

    Images are read and features of a frozen backbone are computed once. See
    `adctl.thresholds.conformal.cross_conformal_bound` for the guarantee.

    Args:
        refitter: Refitter of the run.
        folds: Number of folds.
        views: Views of test-time augmentation.

    Returns:
        The detector fitted on all images, its header, and the calibration scores.

    Raises:
        DataError: There are fewer different images than folds.
    """
    pool = [*refitter.split.train, *refitter.split.calibration]
    parts = assign_folds(pool, refitter.split.digests, folds)

    def score(detector: Detector, header: ModelHeader, samples: Sequence[Sample]) -> CollectedScores:
        return refitter.score(detector, header, samples, views)

    with shared_features(), keep_images():
        scores = scores_by_refitting(pool, parts, refitter.fit, score)
        detector, header = refitter.fit(pool)
    return detector, header, calibration_scores_of(scores, folds=folds, views=views)


def _compute_settings(loaded: LoadedSettings[CalibrateSettings]) -> LoadedSettings[TrainSettings]:
    """Return training settings with only the device settings of this call; all others come from the run."""
    given = {name: getattr(loaded.settings, name) for name in _COMPUTE_SETTINGS if name in loaded.given}
    origins = {name: "calibrate" if name in given else "default" for name in names_of(TrainSettings)}
    return LoadedSettings(TrainSettings(**given), origins)
