"""Cross-validation of a classifier: folds of the training images, with the test images outside of all folds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import softmax
from scipy.stats import rankdata

from adctl import files, run_folder
from adctl.classification.model_file import save_classifier
from adctl.classification.predict import predict_images
from adctl.classification.predictions import PredictionSet, predicted_kinds
from adctl.classification.split import hold_out, stratified_folds
from adctl.classification.training.fitting import HeldOutOutput, fit_classifier
from adctl.engine.context import FitContext
from adctl.engine.training_log import FolderTrainingLog
from adctl.errors import DataError
from adctl.metrics.classification import classification_metrics
from adctl.metrics.mean_std import MeanStd, mean_stds

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from adctl.classification.training.fitting import ClassifierPlan, FittedClassifier
    from adctl.config import TrainSettings
    from adctl.progress import Reporter
    from adctl.records import Sample

    Floats = NDArray[np.float64]

_CRITERION = "macro_f1"
_SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "mcc", "ece")


@dataclass(frozen=True)
class FoldOutcome:
    """Model of one fold.

    Attributes:
        number: Number of the fold, from 1.
        model: Model file, relative to the run.
        images: Number of training images.
        metrics: Metrics on the images of the fold, which the model has not learned from.
    """

    number: int
    model: str
    images: int
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class ClassifierFolds:
    """Cross-validation.

    Attributes:
        folds: Model of each fold.
        spreads: Mean and standard deviation of each metric over the folds.
        out_of_fold: Metrics on all training images together, each named by the model that has not learned from it.
        best: Number of the fold with the best macro F1.
        ensembles: Metrics of the models together on the test images: by mean probability, vote and mean rank.
    """

    folds: tuple[FoldOutcome, ...]
    spreads: dict[str, MeanStd]
    out_of_fold: dict[str, float | None]
    best: int
    ensembles: dict[str, dict[str, float | None]]


def cross_validate(run: Path, settings: TrainSettings, plan: ClassifierPlan, reporter: Reporter) -> ClassifierFolds:
    """Fit a model for each fold, into the folders `fold-N` of a run, and combine them on the test images.

    Raises:
        DataError: A kind has fewer sets of images than folds.
        TrainingError: The loss is not finite, or memory is too small.
    """
    assert settings.folds is not None
    pool = tuple(sorted((*plan.split.train, *plan.split.validation, *plan.split.calibration), key=lambda one: one.key))
    labels = plan.numbers(pool)
    fold_of = stratified_folds(pool, plan.split.digests, settings.folds, 0)
    outcomes, tests = [], []
    probabilities = np.zeros((len(pool), len(plan.classes)))
    for fold in range(settings.folds):
        held = np.flatnonzero(fold_of == fold)
        own = _plan_without(plan, settings, pool, fold_of == fold)
        folder = run / f"fold-{fold + 1}"
        files.make_folder(folder)
        fitted = fit_classifier(replace(settings, resume=None), own, FitContext(reporter, FolderTrainingLog(folder)))
        save_classifier(folder / run_folder.MODEL, fitted.classifier, fitted.header)
        output = _output(fitted, own, tuple(pool[place] for place in held), settings, reporter)
        named = output.named(fitted.header.decision)
        probabilities[held] = named.probabilities
        metrics = _chosen(labels[held], named.probabilities, plan)
        rows = predicted_kinds(output.samples, named, output.distances, plan.classes)
        PredictionSet(plan.classes, fitted.header.decision, tuple(rows)).save(folder)
        model = f"{folder.name}/{run_folder.MODEL}"
        outcomes.append(FoldOutcome(fold + 1, model, len(own.split.train), metrics))
        tested = _output(fitted, own, plan.split.test, settings, reporter)
        tests.append(softmax(tested.logits / fitted.header.decision.temperature, 1))
    best = max(outcomes, key=lambda one: (one.metrics[_CRITERION] or 0.0, -one.number))
    return ClassifierFolds(
        folds=tuple(outcomes),
        spreads=mean_stds(
            {name: value for name, value in one.metrics.items() if value is not None} for one in outcomes
        ),
        out_of_fold=_chosen(labels, probabilities, plan),
        best=best.number,
        ensembles={
            name: _chosen(plan.numbers(plan.split.test), values, plan) for name, values in combined(tests).items()
        },
    )


def combined(models: list[Floats]) -> dict[str, Floats]:
    """Return the probabilities [N,K] of several models together: by mean, vote and mean rank.

    Args:
        models: Probabilities [N,K] of each model for the same images.
    """
    stacked = np.stack(models)
    # Votes are whole; the mean probability, which is below 1, decides between equal numbers of them.
    votes = np.eye(stacked.shape[2])[stacked.argmax(2)].sum(0) + stacked.mean(0) / 2
    ranks = np.mean([rankdata(model, axis=0) for model in models], axis=0)
    return {
        "mean": stacked.mean(0),
        "vote": votes / votes.sum(1, keepdims=True),
        "rank": ranks / ranks.sum(1, keepdims=True),
    }


def _plan_without(
    plan: ClassifierPlan, settings: TrainSettings, pool: tuple[Sample, ...], held: NDArray[np.bool_]
) -> ClassifierPlan:
    """Return the plan of a fold's model, divided anew into training, validation and calibration."""
    train = tuple(sample for sample, out in zip(pool, held, strict=True) if not out)
    tuned = bool(plan.split.calibration)
    digests = plan.split.digests
    calibration: tuple[Sample, ...] = ()
    validation: tuple[Sample, ...] = ()
    if tuned:
        train, calibration = hold_out(train, digests, settings.calibration_share or 0.2, settings.seed + 1)
        train, validation = hold_out(train, digests, settings.validation_share, settings.seed + 2)
    split = replace(plan.split, train=train, calibration=calibration, validation=validation)
    own = replace(plan, split=split)
    if (np.bincount(own.numbers(split.train), minlength=len(plan.classes)) < 2).any():  # noqa: PLR2004 - for folds
        raise DataError("Some kinds have too few images for so many folds.", "Lower --folds.")
    return own


def _output(
    fitted: FittedClassifier,
    plan: ClassifierPlan,
    samples: tuple[Sample, ...],
    settings: TrainSettings,
    reporter: Reporter,
) -> HeldOutOutput:
    values = predict_images(fitted.classifier, samples, plan.device, reporter, workers=settings.workers)
    return HeldOutOutput(samples, plan.numbers(samples), *values)


def _chosen(labels: NDArray[np.int64], probabilities: Floats, plan: ClassifierPlan) -> dict[str, float | None]:
    overall = classification_metrics(labels, probabilities, plan.classes).overall
    return {name: overall[name] for name in _SHOWN}
