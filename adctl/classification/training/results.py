"""Results of a classifier's training: metrics, and the files that a run keeps beside the model.

metrics.json                      all metrics
predictions.csv                   each test image: its kind, the name it got, probabilities
auc_scores.csv                    area under ROC and PR curve of each kind
roc_curve.svg, pr_curve.svg       curves of each kind against all others
"""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adctl import files
from adctl.classification.decision import UNKNOWN
from adctl.metrics.bootstrap import exact_interval
from adctl.metrics.classification import ClassificationMetrics, classification_metrics
from adctl.names import csv_cell
from adctl.reporting.charts import curves_of_models, write_figure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from adctl.classification.classifier import Classifier
    from adctl.classification.decision import Decision, Named
    from adctl.classification.training.cross_validation import ClassifierFolds
    from adctl.classification.training.fitting import FittedClassifier, HeldOutOutput
    from adctl.engine.history import FitReport
    from adctl.metrics.bootstrap import Interval

METRICS, PREDICTIONS, AUC = "metrics.json", "predictions.csv", "auc_scores.csv"
ROC, PR = "roc_curve.svg", "pr_curve.svg"

_DRAWN = 12
"""Largest number of curves in a chart: those of the kinds with the smallest area."""


@dataclass(frozen=True)
class UnknownShares:
    """Shares of images that were called unknown.

    Attributes:
        known: Share of the test images of known kinds, 0 to 1.
        known_interval: Its exact interval, 95 %.
        unseen: Share of the images of each kind that was left out of training, by its name.
        unseen_images: Number of these images, by the name of their kind.
        mean_set: Mean number of kinds in the conformal set of test images.
        coverage: Share of test images whose true kind is in the set, those called unknown left out; None if all are.
    """

    known: float
    known_interval: Interval
    unseen: dict[str, float]
    unseen_images: dict[str, int]
    mean_set: float
    coverage: float | None


@dataclass(frozen=True)
class TestOutcome:
    """Output and metrics on the test images, and output on those of kinds that were left out.

    Attributes:
        output: Output for all these images; kinds that were left out have the number -1.
        named: Their names.
        known: Number of the test images, which come first.
        metrics: Metrics on the test images.
        unknown: Shares called unknown.
        classifier: The network, for the pictures.
        classes: Names of the kinds.
    """

    output: HeldOutOutput
    named: Named
    known: int
    metrics: ClassificationMetrics
    unknown: UnknownShares
    classifier: Classifier
    classes: tuple[str, ...]


@dataclass(frozen=True)
class ClassifierResult:
    """Result of a classifier's training.

    Attributes:
        run: Folder of the run.
        model: Model file in that folder.
        classes: Names of the kinds.
        counts: Training images of each kind.
        images: Number of training images.
        test_images: Number of test images.
        decision: Calibrated decision.
        metrics: Metrics on the test images.
        unknown: Shares called unknown.
        fit: History and timings.
        seconds: Time from the first image to the fitted classifier.
        folds: Cross-validation, or None.
        notes: Sentences for the user.
    """

    run: Path
    model: Path
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    images: int
    test_images: int
    decision: Decision
    metrics: ClassificationMetrics
    unknown: UnknownShares
    fit: FitReport
    seconds: float
    folds: ClassifierFolds | None = None
    notes: tuple[str, ...] = ()


def evaluate_outcome(
    output: HeldOutOutput, known: int, fitted: FittedClassifier, classes: tuple[str, ...]
) -> TestOutcome:
    """Compute the metrics of test images.

    Args:
        output: Output for test images and, behind them, images of kinds that were left out.
        known: Number of the test images.
        fitted: The classifier.
        classes: Names of the kinds.
    """
    named = output.named(fitted.header.decision)
    labels = output.labels[:known]
    metrics = classification_metrics(labels, named.probabilities[:known], classes)
    missed = int(named.unknown[:known].sum())
    kept = ~named.unknown[:known]
    in_set = named.sets[:known][np.arange(known), labels]
    left_out = [str(sample.label) for sample in output.samples[known:]]
    by_kind = {
        kind: [no for no, label in zip(named.unknown[known:], left_out, strict=True) if label == kind]
        for kind in sorted(set(left_out))
    }
    unknown = UnknownShares(
        known=missed / known,
        known_interval=exact_interval(missed, known, 0.95),
        unseen={kind: float(np.mean(own)) for kind, own in by_kind.items()},
        unseen_images={kind: len(own) for kind, own in by_kind.items()},
        mean_set=float(named.sets[:known].sum(1).mean()),
        coverage=float(in_set[kept].mean()) if kept.any() else None,
    )
    return TestOutcome(output, named, known, metrics, unknown, fitted.classifier, classes)


def write_results(run: Path, result: ClassifierResult, outcome: TestOutcome) -> None:
    """Write metrics, predictions and charts into the folder of a run.

    Raises:
        OutputError: A file cannot be written.
    """
    files.write_json(run / METRICS, {"schema": "adctl.classifier-metrics/1", **metrics_document(result)})
    write_table(run / PREDICTIONS, prediction_rows(outcome.output, outcome.named, outcome.classes))
    areas = [(kind.name, kind.support, kind.auroc, kind.ap) for kind in outcome.metrics.kinds]
    overall = outcome.metrics.overall
    averages = [
        (f"({name})", outcome.known, overall[f"{name}_auroc"], overall[f"{name}_ap"])
        for name in ("macro", "micro", "weighted")
    ]
    write_table(run / AUC, [("kind", "images", "auroc", "ap"), *areas, *averages])
    _write_curves(run, outcome)


def metrics_document(result: ClassifierResult) -> dict[str, Any]:
    """Return metrics, decision and cross-validation as a JSON-safe dictionary."""
    return {
        "classes": list(result.classes),
        "metrics": asdict(result.metrics),
        "unknown": asdict(result.unknown),
        "decision": asdict(result.decision),
        "folds": None if result.folds is None else asdict(result.folds),
    }


def prediction_rows(output: HeldOutOutput, named: Named, classes: Sequence[str]) -> Iterable[tuple[object, ...]]:
    """Yield the rows of `predictions.csv`, the names of the columns first."""
    yield ("key", "label", "name", "kind", "probability", "set", "distance", *(f"p({name})" for name in classes))
    for number, (sample, name) in enumerate(zip(output.samples, named.names(classes), strict=True)):
        kind = int(named.kinds[number])
        members = "|".join(one for one, inside in zip(classes, named.sets[number], strict=True) if inside)
        probabilities = named.probabilities[number]
        yield (
            *(sample.key, sample.label, name, classes[kind], f"{probabilities[kind]:.6g}", members or UNKNOWN),
            f"{output.distances[number]:.6g}",
            *(f"{value:.6g}" for value in probabilities),
        )


def write_table(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file; None becomes an empty cell."""
    stream = io.StringIO(newline="")
    table = csv.writer(stream)
    for row in rows:
        table.writerow(["" if value is None else csv_cell(value) for value in row])
    files.write_text(path, stream.getvalue())


def _write_curves(run: Path, outcome: TestOutcome) -> None:
    from sklearn.metrics import precision_recall_curve, roc_curve

    drawn = sorted((kind for kind in outcome.metrics.kinds if kind.auroc is not None), key=lambda kind: kind.auroc or 0)
    curves: dict[str, dict[str, Any]] = {}
    for kind in drawn[:_DRAWN]:
        number = outcome.classes.index(kind.name)
        truth = outcome.output.labels[: outcome.known] == number
        scores = outcome.named.probabilities[: outcome.known, number]
        false, true, _ = roc_curve(truth, scores)
        precision, recall, _ = precision_recall_curve(truth, scores)
        label = f"{kind.name} ({kind.support})"
        curves[label] = {"roc": {"x": false, "y": true}, "pr": {"x": recall, "y": precision}}
    drawings: dict[str, Callable[[Any], None]] = curves_of_models(curves)
    for name, file in (("roc", ROC), ("pr", PR)):
        if name in drawings:
            write_figure(run / file, drawings[name])
