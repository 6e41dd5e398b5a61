"""Evaluation of a trained model on the test images of its dataset."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adctl.config import LoadedSettings, ScoreSettings, names_of
from adctl.evaluation.evaluate import evaluate
from adctl.metrics.table import Place, shown_in
from adctl.progress import SILENT, Reporter
from adctl.reporting.named_metrics import named_metrics
from adctl.scoring.score import score
from adctl.scoring.score_set import ScoreSet
from adctl.tracking import record

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from adctl.config import TrainSettings
    from adctl.evaluation.evaluate import Evaluation
    from adctl.metrics.mean_std import MeanStd
    from adctl.records import Sample

TEST_SCORES = "test-scores"
"""Folder of the scored test images, beside the model."""

METRICS: dict[str, str] = {name: one.column or one.label for name, one in shown_in(Place.TRAINING).items()}
"""Names and table headings of the metrics; metrics that the test images do not allow are left out."""


DEFECT_METRICS = ("image_auroc", "pixel_aupro")
"""Metrics that are also given for each defect type, against all good images, by names such as `image_auroc.scratch`."""


@dataclass(frozen=True)
class TestResult:
    """Result of a model on the test images.

    Attributes:
        scores: The scored set.
        metrics: Metrics by the names of `METRICS`, and `DEFECT_METRICS` of each defect type.
        seconds: Time of scoring.
    """

    scores: ScoreSet
    metrics: dict[str, float]
    seconds: float


def can_test(test: Iterable[Sample]) -> bool:
    """Return whether there are labelled test images."""
    return any(sample.label is not None for sample in test)


def evaluate_on_test(model: Path, settings: TrainSettings, reporter: Reporter = SILENT) -> TestResult:
    """Score the test images of a model, write scores and maps to `test-scores` beside it, and compute the metrics.

    Args:
        model: Model file in the folder of its run.
        settings: Settings of the training, for device and batch size.
        reporter: Receiver of progress.

    Raises:
        DataError: No image could be scored.
        OutputError: The scores cannot be written.
    """
    folder = model.parent / TEST_SCORES
    shared: dict[str, Any] = {name: getattr(settings, name) for name in ("device", "gpu", "batch_size", "workers")}
    given = ScoreSettings(model=model, out=folder, heatmaps=False, runs=model.parent.parent, **shared)
    start = time.perf_counter()
    score(LoadedSettings(given, dict.fromkeys(names_of(ScoreSettings), "train")), reporter)
    seconds = time.perf_counter() - start
    scores = ScoreSet.load(folder)
    metrics = metrics_of(evaluate(scores))
    record.made(model, "scores", folder, metrics=metrics)
    return TestResult(scores, metrics, seconds)


def metrics_of(evaluation: Evaluation) -> dict[str, float]:
    """Return the metrics of `METRICS` that the evaluation has, then `DEFECT_METRICS` of each defect type."""
    found = named_metrics(evaluation)
    names = [*METRICS, *(f"{name}.{kind}" for name in DEFECT_METRICS for kind in evaluation.by_defect)]
    values = {name: found[name].value for name in names if name in found}
    return {name: float(value) for name, value in values.items() if value is not None}


def shown(spreads: dict[str, MeanStd]) -> tuple[str, ...]:
    """Return a table cell for each metric, in the order of `METRICS`."""
    return tuple(str(spreads[name]) if name in spreads else "" for name in METRICS)
