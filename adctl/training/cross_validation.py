"""`train --folds K`: K models, each held out from a part of the good images, and one that learned from all.

    run/
      model.safetensors    learned from all good images; calibrated by the out-of-fold scores
      fold-1/ ...          a run each: model, history, split; its threshold comes from the part it was held out from
      fold-1/test-scores/  its scores of the test images, where they have labels
      out_of_fold.csv      every good image, scored by the one model that has not seen it
      summary.json         folds, metrics with mean and spread, ensembles, best fold

The threshold of the model that learned from all images has no proof: see `adctl.calibration.refit.cross_fit`.
Ensembles are measured, not kept: scoring with one costs K times as much. Score with the model that learned from all.
"""

from __future__ import annotations

import csv
import io
import logging
import shutil
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
from adctl.scoring.predict import CollectedScores, calibration_scores_of, predict
from adctl.training import resume
from adctl.training.evaluate import can_test, evaluate_on_test
from adctl.training.single_run import plan_training, train_into, train_once

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adctl.metrics.labels import Floats
    from adctl.records import Sample
    from adctl.scoring.score_set import ScoreSet
    from adctl.training.single_run import TrainResult

log = logging.getLogger(__name__)

SUMMARY = "summary.json"
OUT_OF_FOLD = "out_of_fold.csv"
TEST_SCORES = "test-scores"
_RANKING = [one.name for one in IMAGE if Place.TRAINING in one.places and not one.at_threshold]
"""Metrics of an ensemble, which has no threshold."""

_CRITERION = (
    "the shortest tail of the good scores held out from it (95th percentile above the median, in medians); "
    "no test image takes part"
)

_OF_BEST = (
    "The best fold's threshold rests on the scores that made it the best, so it is likelier too low than the others; "
    "the model that learned from all is the one to score with."
)
_OF_ALL = (
    "The threshold of the model that learned from all comes from scores by models of fewer images: it tends to keep "
    "its false-alarm rate, and no proof says so."
)


@dataclass(frozen=True)
class FoldResult:
    """One fold's model.

    Attributes:
        number: From 1.
        model: Its model file.
        images: Good images learned from.
        held_out: Good images held out.
        threshold: From those.
        tail: How far the 95th percentile of the held-out scores lies above their median, in medians.
        metrics: On the test images, by the names of `adctl.training.evaluate.METRICS`; empty without labels.
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
    """What cross-validation made.

    Attributes:
        run: The folder of all.
        trained: The model that learned from all good images.
        folds: In order.
        spreads: Mean and spread over the folds of each test metric.
        ensembles: `mean`, `max` and `rank` with their ranking metrics on the test images; empty without labels.
        all_images: Test metrics of the model that learned from all; empty without labels.
        best: Number of the best fold.
        criterion: By what it is the best.
        notes: What to know.
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
class _Scored:
    """A fold with its scores: those held out [n], with keys and map peaks, and of the test images or None."""

    fold: FoldResult
    keys: tuple[str, ...]
    good: Floats
    peaks: Floats
    test: ScoreSet | None


def cross_validate(loaded: LoadedSettings[TrainSettings], reporter: Reporter = SILENT) -> CrossValidationResult:
    """Fit a model a fold and one on all good images; score what each has not seen.

    A run that was cut short goes on with `resume`: folds that are complete stay.

    Args:
        loaded: The settings, with `folds`.
        reporter: Told how far it is.

    Raises:
        UsageError: Something named does not exist or does not fit together.
        DataError: The images cannot be used as they are, or there are fewer than folds.
        TrainingError: Fitting cannot go on.
        OutputError: The run cannot be written.
    """
    run = None
    if loaded.settings.resume is not None:
        run = resume.find_run(loaded)
        loaded = resume.settings_of(run, loaded)
    settings = loaded.settings
    if settings.devices is not None or distributed.is_launched_externally():
        raise UsageError("--folds trains on one device.", "Train fold by fold: --folds K --fold N --devices ....")
    plan = plan_training(settings)
    if run is None:
        run = run_folder.new_folder(settings.runs, settings.arch, plan.dataset.category, "folds", name=settings.name)
        resume.keep_settings(run, loaded, plan.split)
    else:
        resume.check_data(run, plan.split)
    notes = _dropped(len(plan.dataset.train) - len(plan.split.digests))
    try:
        return _all(run, loaded, plan.dataset.test, notes, reporter)
    except BaseException:
        _leave(run)
        raise


def _all(
    run: Path, loaded: LoadedSettings[TrainSettings], test: Sequence[Sample], notes: list[str], reporter: Reporter
) -> CrossValidationResult:
    settings = loaded.settings
    assert settings.folds is not None
    labelled = can_test(test)
    with shared_features():
        scored = [_fold(run, loaded, number, reporter, labelled=labelled) for number in range(1, settings.folds + 1)]
        trained = _learn_from_all(run, loaded, scored, reporter)
        tested = evaluate_on_test(trained.model, settings, run / TEST_SCORES, reporter) if labelled else None
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


def _fold(
    run: Path, loaded: LoadedSettings[TrainSettings], number: int, reporter: Reporter, *, labelled: bool
) -> _Scored:
    folder = run / f"fold-{number}"
    model = folder / run_folder.MODEL
    own = replace(loaded.settings, runs=run, name=folder.name, fold=number, resume=None)
    log.info("Fold %d of %d.", number, loaded.settings.folds)
    if not (folder / run_folder.RUN).is_file():
        _train_fold(folder, LoadedSettings(own, loaded.origins), reporter)
    plan = plan_training(own)
    keys, good, peaks = _out_of_fold(model, own, plan.split.calibration)
    tested = evaluate_on_test(model, own, folder / TEST_SCORES, reporter) if labelled else None
    record = run_folder.read_manifest(folder)
    assert record is not None
    fold = FoldResult(
        number=number,
        model=model,
        images=len(plan.split.train),
        held_out=len(good),
        threshold=float(record["calibration"]["threshold"]),
        tail=_tail(good),
        metrics=tested.metrics if tested else {},
    )
    return _Scored(fold, keys, good, peaks, tested.scores if tested else None)


def _train_fold(folder: Path, own: LoadedSettings[TrainSettings], reporter: Reporter) -> None:
    """Anew, or from the checkpoint that an earlier call left."""
    if (folder / CHECKPOINTS).is_dir() and not (folder / run_folder.MODEL).is_file():
        own = LoadedSettings(replace(own.settings, resume=folder), own.origins)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    train_once(own, reporter)


def _out_of_fold(
    model: Path, settings: TrainSettings, samples: Sequence[Sample]
) -> tuple[tuple[str, ...], Floats, Floats]:
    """Keys, scores and map peaks of the images held out from a model; those that cannot be read are told of."""
    runtime = open_runtime(model, settings.device, settings.gpu)
    keys, scores, peaks = [], [], []
    for found in predict(runtime, samples, batch_size=settings.batch_size, workers=settings.workers):
        if found.score is None or found.peak is None:
            log.warning("%s", found.item.error)
            continue
        keys.append(found.item.sample.key)
        scores.append(found.score)
        peaks.append(found.peak)
    if not keys:
        raise DataError(f"None of the {len(samples)} images held out from {model} can be read.", "Check the files.")
    return tuple(keys), np.array(scores, np.float64), np.array(peaks, np.float64)


def _tail(good: Floats) -> float:
    middle, high = np.quantile(good, [0.5, 0.95])
    return float((high - middle) / abs(middle)) if middle else float("inf")


def _learn_from_all(
    run: Path, loaded: LoadedSettings[TrainSettings], scored: Sequence[_Scored], reporter: Reporter
) -> TrainResult:
    log.info("Learning from all good images.")
    good, peaks = (np.concatenate([getattr(one, name) for one in scored]) for name in ("good", "peaks"))
    evidence = calibration_scores_of(CollectedScores(good, peaks, ()), folds=len(scored))
    return train_into(run, loaded, plan_training(loaded.settings), reporter, evidence)


def _ensembles(scored: Sequence[_Scored]) -> dict[str, dict[str, float]]:
    """Ranking metrics of each ensemble over the labelled test images that every fold's model could score."""
    tests = [{row.key: row for row in one.test.rows if row.score is not None} for one in scored if one.test]
    if not tests:
        return {}
    keys = [key for key, row in tests[0].items() if row.label is not None and all(key in test for test in tests)]
    truth = [tests[0][key].label != GOOD for key in keys]
    if all(truth) or not any(truth):
        return {}
    found = combine_scores([[test[key].score or 0.0 for key in keys] for test in tests], [one.good for one in scored])
    metrics = {name: image_metrics(values, truth) for name, values in found.items()}
    return {name: {f"image_{one}": float(getattr(value, one)) for one in _RANKING} for name, value in metrics.items()}


def _dropped(count: int) -> list[str]:
    if not count:
        return []
    note = f"{count} good images are test images too, byte for byte, and were left out of all folds."
    log.warning("%s", note)
    return [note]


def _notes(smallest: int, *, labelled: bool) -> list[str]:
    notes = [_OF_BEST, _OF_ALL]
    if smallest < 10:  # noqa: PLR2004 - a standard deviation of fewer is mostly chance
        notes.append(
            f"A fold holds out only {smallest} good images: thresholds of folds, and the scale of ensembles by mean "
            "and max, are rough."
        )
    if not labelled:
        notes.append("There are no labelled test images, so there are no metrics.")
    return notes


def _write(result: CrossValidationResult, scored: Sequence[_Scored]) -> None:
    stream = io.StringIO(newline="")
    table = csv.writer(stream)
    table.writerow(("key", "fold", "score", "standardised", "peak"))
    for one in scored:
        columns = (one.keys, one.good.tolist(), standardise(one.good, one.good).tolist(), one.peaks.tolist())
        for key, value, standard, peak in zip(*columns, strict=True):
            table.writerow((key, one.fold.number, repr(value), repr(standard), repr(peak)))
    files.write_text(result.run / OUT_OF_FOLD, stream.getvalue())
    files.write_json(result.run / SUMMARY, {"schema": "adctl.folds/1", **summary(result)})


def summary(result: CrossValidationResult) -> dict[str, Any]:
    """What `summary.json` holds: JSON-safe, models named by their place in the run."""
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


def _leave(run: Path) -> None:
    """After a failure: what is there stays, and the user hears how to go on; an empty run goes."""
    if any(run.glob("fold-*")):
        log.warning("Complete folds are kept: go on with 'adctl train --resume %s'.", run)
    else:
        shutil.rmtree(run, ignore_errors=True)
