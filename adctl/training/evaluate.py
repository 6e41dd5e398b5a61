"""A trained model on the test part of its data set: scored into a folder, and what its scores are worth."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adctl.config import LoadedSettings, ScoreSettings, names_of
from adctl.evaluation.evaluate import evaluate
from adctl.metrics.table import Place, shown_in
from adctl.progress import SILENT, Reporter
from adctl.scoring.score import score
from adctl.scoring.score_set import ScoreSet

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from adctl.config import TrainSettings
    from adctl.evaluation.evaluate import Evaluation
    from adctl.metrics.mean_std import MeanStd
    from adctl.records import Sample

METRICS: dict[str, str] = {name: one.column or one.label for name, one in shown_in(Place.TRAINING).items()}
"""What is measured, with the names shown; those that the test part does not allow are left out."""


@dataclass(frozen=True)
class TestResult:
    """A model on its test part.

    Attributes:
        scores: The scored set.
        metrics: By the names of `METRICS`.
        seconds: Scoring took.
    """

    scores: ScoreSet
    metrics: dict[str, float]
    seconds: float


def can_test(test: Iterable[Sample]) -> bool:
    """Whether there are labelled test images."""
    return any(sample.label is not None for sample in test)


def evaluate_on_test(model: Path, settings: TrainSettings, folder: Path, reporter: Reporter = SILENT) -> TestResult:
    """Score a model's test images into a folder, maps included, and measure the scores.

    Args:
        model: In its run.
        settings: Of the training: where to compute.
        folder: For the scored set.
        reporter: Told how far it is.

    Raises:
        DataError: Not one image could be scored.
        OutputError: The scores cannot be written.
    """
    shared: dict[str, Any] = {name: getattr(settings, name) for name in ("device", "gpu", "batch_size", "workers")}
    given = ScoreSettings(model=model, out=folder, heatmaps=False, runs=model.parent.parent, **shared)
    start = time.perf_counter()
    score(LoadedSettings(given, dict.fromkeys(names_of(ScoreSettings), "train")), reporter)
    seconds = time.perf_counter() - start
    scores = ScoreSet.load(folder)
    return TestResult(scores, metrics_of(evaluate(scores)), seconds)


def metrics_of(evaluation: Evaluation) -> dict[str, float]:
    """The metrics of `METRICS` that exist."""
    found = {}
    for name in METRICS:
        group, _, bare = name.partition("_")
        value = getattr(getattr(evaluation, group), bare, None)
        if value is not None:
            found[name] = float(value)
    return found


def shown(spreads: dict[str, MeanStd]) -> tuple[str, ...]:
    """A cell a metric, in the order of `METRICS`."""
    return tuple(str(spreads[name]) if name in spreads else "" for name in METRICS)
