"""Cross-validation for `train --folds K`: a model for each fold, and one model trained on all good images.

    run/
      model.safetensors    model trained on all good images, calibrated by the out-of-fold scores
      fold-1/ ...          run of each fold: model, history, split; the threshold comes from the held-out fold
      fold-1/test-scores/  its scores of the test images, if they have labels
      out_of_fold.csv      score of each good image by the model that was not trained on it
      summary.json         folds, metrics with mean and standard deviation, ensembles, best fold

The false-alarm rate of the model trained on all images is not guaranteed: see `adctl.calibration.refit.cross_fit`.
Ensembles of the folds are evaluated but not saved, because scoring would take K times as long.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl import files, run_folder
from adctl.config import LoadedSettings, TrainSettings
from adctl.detectors.components.shared_feature_cache import shared_features
from adctl.engine import distributed
from adctl.engine.checkpoints import FOLDER as CHECKPOINTS
from adctl.errors import DataError, UsageError
from adctl.metrics.ensemble import combine_scores, standardise
from adctl.metrics.image import image_metrics
from adctl.metrics.mean_std import MeanStd, mean_stds
from adctl.metrics.table import IMAGE, Place
from adctl.progress import SILENT, Reporter
from adctl.records import GOOD
from adctl.runtimes.loading import open_runtime
from adctl.scoring.predict import CollectedScores, calibration_scores_of, collect
from adctl.tracking.loggers.run_loggers import finished
from adctl.tracking.own_files import clear_own_files
from adctl.training import resume
from adctl.training.evaluate import can_test, evaluate_on_test
from adctl.training.plan import plan_training, with_chosen_size
from adctl.training.single_run import new_loggers, train_into, train_once

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from adctl.metrics.labels import Floats
    from adctl.records import Sample
    from adctl.scoring.score_set import ScoreSet
    from adctl.tracking.loggers.run_loggers import Loggers
    from adctl.training.single_run import TrainResult

    Method = Callable[..., list["ScoredFold"]]

log = logging.getLogger(__name__)

OUT_OF_FOLD = "out_of_fold.csv"
_RANKING = [one.name for one in IMAGE if Place.TRAINING in one.places and not one.at_threshold]
"""Metrics of an ensemble, which has no threshold."""

_CRITERION = (
    "the shortest tail of the held-out good scores (95th percentile above the median, in medians); test images are not "
    "used"
)

_NOTE_ON_BEST = (
    "The best fold was chosen by the scores that also gave its threshold, so this threshold is more likely too low "
    "than the others; score with the model trained on all images."
)
_NOTE_ON_ALL = (
    "The threshold of the model trained on all images comes from models trained on fewer images: its false-alarm rate "
    "is usually met, but not guaranteed."
)


@dataclass(frozen=True)
class FoldResult:
    """Model of one fold.

    Attributes:
        number: Number of the fold, from 1.
        model: Model file.
        images: Number of training images.
        held_out: Number of held-out good images.
        threshold: Threshold from the held-out images.
        tail: Distance from the median to the 95th percentile of the held-out scores, in medians.
        metrics: Metrics on the test images, by the names of `adctl.training.evaluate.METRICS`; empty without labels.
    """

    number: int
    model: Path
    images: int
    held_out: int
    threshold: float
    tail: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class CrossValidationResult:
    """Result of a cross-validation.

    Attributes:
        run: Folder of the run, with the runs of the folds.
        trained: Model trained on all good images.
        folds: Models of the folds, in order.
        spreads: Mean and standard deviation over the folds of each test metric.
        ensembles: Ranking metrics of the ensembles `mean`, `max` and `rank` on the test images; empty without labels.
        all_images: Test metrics of the model trained on all images; empty without labels.
        best: Number of the best fold.
        criterion: Criterion of the best fold.
        notes: Notes for the user, full sentences.
    """

    run: Path
    trained: TrainResult
    folds: tuple[FoldResult, ...]
    spreads: dict[str, MeanStd]
    ensembles: dict[str, dict[str, float]]
    all_images: dict[str, float]
    best: int
    criterion: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ScoredFold:
    """Fold with scores.

    Attributes:
        fold: The fold.
        good: Scores of its held-out good images.
        test: Scores of the test images, or None.
    """

    fold: FoldResult
    good: CollectedScores
    test: ScoreSet | None


def train_folds_in_turn(
    run: Path, loaded: LoadedSettings[TrainSettings], reporter: Reporter, *, labelled: bool
) -> list[ScoredFold]:
    """Train the folds in this process.

    Args:
        run: Folder of the run.
        loaded: Settings of the cross-validation.
        reporter: Receiver of progress.
        labelled: Whether there are labelled test images.
    """
    failed: set[str] = set()
    numbers = range(1, (loaded.settings.folds or 0) + 1)
    return [train_fold(run, loaded, number, failed, reporter, labelled=labelled) for number in numbers]


def cross_validate(
    loaded: LoadedSettings[TrainSettings], reporter: Reporter = SILENT, train: Method = train_folds_in_turn
) -> CrossValidationResult:
    """Train a model for each fold and one on all good images, and score the images that each was not trained on.

    With `resume`, a run that was interrupted continues, and its complete folds are kept.

    Args:
        loaded: The settings with their origins; `folds` is set.
        reporter: Receiver of progress.
        train: Method that trains the folds.

    Raises:
        UsageError: A name is unknown, a path does not exist, or settings contradict each other.
        DataError: The images cannot be used, or there are fewer images than folds.
        TrainingError: The loss is not finite, or memory is too small.
        OutputError: The run cannot be written.
    """
    run, loaded = resume.find_run(loaded)
    settings = loaded.settings
    if settings.devices is not None or distributed.is_launched_externally():
        raise UsageError(
            "Cross-validation with --folds uses a single device.",
            "Train the folds one by one: --folds K --fold N --devices ....",
        )
    plan = plan_training(settings)
    loaded = with_chosen_size(loaded, plan)
    if run is None:
        run = run_folder.new_folder(settings.runs, settings.arch, plan.dataset.category, "folds", name=settings.name)
        resume.save_settings(run, loaded, plan.split)
    else:
        resume.check_data(run, plan.split)
    notes = _note_on_dropped(len(plan.dataset.train) - len(plan.split.digests))
    with resume.kept_if_resumable(run):
        return _train_all(run, loaded, plan.dataset.test, notes, reporter, train)


def _train_all(
    run: Path,
    loaded: LoadedSettings[TrainSettings],
    test: Sequence[Sample],
    notes: list[str],
    reporter: Reporter,
    train: Method,
) -> CrossValidationResult:
    settings = loaded.settings
    assert settings.folds is not None
    labelled = can_test(test)
    with shared_features():
        scored = train(run, loaded, reporter, labelled=labelled)
        with finished(new_loggers(settings, run.name, set())) as loggers:
            trained = _train_on_all_images(run, loaded, scored, loggers, reporter)
            tested = evaluate_on_test(trained.model, settings, reporter) if labelled else None
            loggers.log_metrics(tested.metrics if tested else {})
    run_folder.set_last(settings.runs, "model", trained.model)
    folds = tuple(one.fold for one in scored)
    best = min(folds, key=lambda fold: fold.tail)
    smallest = min(fold.held_out for fold in folds)
    notes = [*notes, *_notes(smallest, labelled=labelled)]
    result = CrossValidationResult(
        run=run,
        trained=trained,
        folds=folds,
        spreads=mean_stds(fold.metrics for fold in folds),
        ensembles=_ensembles(scored),
        all_images=tested.metrics if tested else {},
        best=best.number,
        criterion=_CRITERION,
        notes=tuple(notes),
    )
    _write(result, scored)
    return result


def train_fold(
    run: Path,
    loaded: LoadedSettings[TrainSettings],
    number: int,
    failed_loggers: set[str],
    reporter: Reporter = SILENT,
    *,
    labelled: bool,
) -> ScoredFold:
    """Train one fold unless an earlier call did, and score its held-out and the test images.

    Args:
        run: Folder of the run.
        loaded: Settings of the cross-validation.
        number: Number of the fold, from 1.
        failed_loggers: Names of the loggers that failed before; changed in place.
        reporter: Receiver of progress.
        labelled: Whether there are labelled test images.
    """
    with finished(new_loggers(loaded.settings, run.name, failed_loggers)) as loggers:
        return _fold(run, loaded, number, loggers, reporter, labelled=labelled)


def _fold(
    run: Path,
    loaded: LoadedSettings[TrainSettings],
    number: int,
    loggers: Loggers,
    reporter: Reporter,
    *,
    labelled: bool,
) -> ScoredFold:
    folder = run / f"fold-{number}"
    model = folder / run_folder.MODEL
    own = replace(loaded.settings, runs=run, name=folder.name, fold=number, resume=None, ray=None)
    log.info("Fold %d of %d.", number, loaded.settings.folds)
    if not (folder / run_folder.RUN).is_file():
        _train_fold(folder, LoadedSettings(own, loaded.origins), loggers, reporter)
    plan = plan_training(own)
    good = _score_held_out(model, own, plan.split.calibration)
    tested = evaluate_on_test(model, own, reporter) if labelled else None
    loggers.log_metrics(tested.metrics if tested else {})
    record = run_folder.read_manifest(folder)
    assert record is not None
    assert record.calibration is not None
    fold = FoldResult(
        number=number,
        model=model,
        images=len(plan.split.train),
        held_out=len(good.scores),
        threshold=record.calibration.threshold,
        tail=_tail(good.scores),
        metrics=tested.metrics if tested else {},
    )
    return ScoredFold(fold, good, tested.scores if tested else None)


def _train_fold(folder: Path, own: LoadedSettings[TrainSettings], loggers: Loggers, reporter: Reporter) -> None:
    """Train a fold, from its newest checkpoint if an earlier call left one."""
    if (folder / CHECKPOINTS).is_dir() and not (folder / run_folder.MODEL).is_file():
        own = LoadedSettings(replace(own.settings, resume=folder), own.origins)
    else:
        clear_own_files(folder)
    train_once(own, reporter, loggers)


def _score_held_out(model: Path, settings: TrainSettings, samples: Sequence[Sample]) -> CollectedScores:
    runtime = open_runtime(model, settings.device, settings.gpu)
    good = collect(runtime, samples, batch_size=settings.batch_size, workers=settings.workers)
    if not good.keys:
        raise DataError(f"None of the {len(samples)} images held out from {model} can be read.", "Check the files.")
    return good


def _tail(good: Floats) -> float:
    middle, high = np.quantile(good, [0.5, 0.95])
    return float((high - middle) / abs(middle)) if middle else float("inf")


def _train_on_all_images(
    run: Path, loaded: LoadedSettings[TrainSettings], scored: Sequence[ScoredFold], loggers: Loggers, reporter: Reporter
) -> TrainResult:
    log.info("Training on all good images.")
    good = CollectedScores.concatenate([one.good for one in scored])
    scores = calibration_scores_of(good, folds=len(scored), by_category=loaded.settings.one_model)
    return train_into(run, loaded, plan_training(loaded.settings), reporter, scores, loggers)


def _ensembles(scored: Sequence[ScoredFold]) -> dict[str, dict[str, float]]:
    """Return ranking metrics of each ensemble, on the labelled test images that the models of all folds scored."""
    tests = [{row.key: row for row in one.test.rows if row.score is not None} for one in scored if one.test]
    if not tests:
        return {}
    keys = [key for key, row in tests[0].items() if row.label is not None and all(key in test for test in tests)]
    truth = [tests[0][key].label != GOOD for key in keys]
    if all(truth) or not any(truth):
        return {}
    test_scores = [[test[key].score or 0.0 for key in keys] for test in tests]
    combined = combine_scores(test_scores, [one.good.scores for one in scored])
    metrics = {name: image_metrics(values, truth) for name, values in combined.items()}
    return {name: {f"image_{one}": float(getattr(value, one)) for one in _RANKING} for name, value in metrics.items()}


def _note_on_dropped(count: int) -> list[str]:
    if not count:
        return []
    note = f"{count} good images are identical to test images and were left out of all folds."
    log.warning("%s", note)
    return [note]


def _notes(smallest: int, *, labelled: bool) -> list[str]:
    notes = [_NOTE_ON_BEST, _NOTE_ON_ALL]
    if smallest < 10:  # noqa: PLR2004 - a standard deviation of fewer images is unreliable
        notes.append(
            f"The smallest fold has only {smallest} good images, so the thresholds of the folds and the scales of the "
            "ensembles by mean and max are imprecise."
        )
    if not labelled:
        notes.append("There are no labelled test images, so there are no metrics.")
    return notes


def _write(result: CrossValidationResult, scored: Sequence[ScoredFold]) -> None:
    rows: list[tuple[object, ...]] = [("key", "fold", "score", "standardised", "peak")]
    for one in scored:
        scores = one.good.scores
        columns = (one.good.keys, scores.tolist(), standardise(scores, scores).tolist(), one.good.peaks.tolist())
        rows += [(key, one.fold.number, *values) for key, *values in zip(*columns, strict=True)]
    files.write_csv(result.run / OUT_OF_FOLD, rows)
    files.write_json(result.run / run_folder.SUMMARY, {"schema": "adctl.folds/1", **summary(result)})


def summary(result: CrossValidationResult) -> dict[str, Any]:
    """Return the content of `summary.json`: JSON-safe, with model files relative to the run."""
    return {
        "model": result.trained.model.name,
        "folds": [
            {
                **asdict(fold),
                "model": fold.model.relative_to(result.run).as_posix(),
                "tail": fold.tail if np.isfinite(fold.tail) else None,
            }
            for fold in result.folds
        ],
        "spreads": {name: asdict(value) for name, value in result.spreads.items()},
        "ensembles": result.ensembles,
        "all_images": result.all_images,
        "threshold": result.trained.calibration.threshold,
        "best": result.best,
        "criterion": result.criterion,
        "notes": list(result.notes),
    }
