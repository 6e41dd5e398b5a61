"""Results of a classifier's training: metrics, and the files that a run keeps beside the model.

metrics.json                      all metrics
predictions.csv, predictions.json each test image: its kind, the name it got, probabilities
auc_scores.csv                    area under ROC and PR curve of each kind
roc_curve.svg, pr_curve.svg       curves of each kind against all others
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from adctl import files
from adctl.reporting.charts import curves_of_models, write_figure
from adctl.reporting.classifier_report import curves_of_kinds

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.classification.decision import Decision
    from adctl.classification.predictions import PredictionSet, UnknownShares
    from adctl.classification.training.cross_validation import ClassifierFolds
    from adctl.engine.history import FitReport
    from adctl.metrics.classification import ClassificationMetrics

METRICS, AUC = "metrics.json", "auc_scores.csv"
FIGURES = {"roc": "roc_curve.svg", "pr": "pr_curve.svg"}


@dataclass(frozen=True)
class TestOutcome:
    """Predictions for the test images and for those of kinds that were left out.

    Attributes:
        predictions: All these predictions.
        metrics: Metrics on the test images.
        unknown: Shares called unknown.
    """

    __test__ = False  # keeps pytest from collecting it

    predictions: PredictionSet
    metrics: ClassificationMetrics
    unknown: UnknownShares


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


def evaluate_outcome(predictions: PredictionSet) -> TestOutcome:
    """Compute the metrics of test images, and the shares called unknown."""
    metrics, unknown = predictions.metrics(), predictions.unknown()
    assert metrics is not None
    assert unknown is not None
    return TestOutcome(predictions, metrics, unknown)


def write_results(run: Path, result: ClassifierResult, outcome: TestOutcome) -> None:
    """Write metrics, predictions, charts and page into the folder of a run.

    Raises:
        OutputError: A file cannot be written.
    """
    files.write_json(run / METRICS, {"schema": "adctl.classifier-metrics/1", **metrics_document(result)})
    outcome.predictions.save(run)
    areas = [(kind.name, kind.support, kind.auroc, kind.ap) for kind in outcome.metrics.kinds]
    overall = outcome.metrics.overall
    averages = [
        (f"({name})", outcome.metrics.images, overall[f"{name}_auroc"], overall[f"{name}_ap"])
        for name in ("macro", "micro", "weighted")
    ]
    files.write_csv(run / AUC, [("kind", "images", "auroc", "ap"), *areas, *averages])
    for name, draw in curves_of_models(curves_of_kinds(outcome.predictions, outcome.metrics)).items():
        write_figure(run / FIGURES[name], draw)


def metrics_document(result: ClassifierResult) -> dict[str, Any]:
    """Return metrics, decision and cross-validation as a JSON-safe dictionary."""
    return {
        "classes": list(result.classes),
        "metrics": asdict(result.metrics),
        "unknown": asdict(result.unknown),
        "decision": asdict(result.decision),
        "folds": None if result.folds is None else asdict(result.folds),
    }
