"""Demonstration on generated zipper images: fetch, train, calibrate, score, report."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from adctl.calibration.calibrate import calibrate
from adctl.config import CalibrateSettings, LoadedSettings, ReportSettings, ScoreSettings, TrainSettings, names_of
from adctl.fetching.datasets import fetch_dataset
from adctl.progress import SILENT, Reporter
from adctl.reporting.report import report
from adctl.scoring.score import score
from adctl.training.single_run import train_once

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.calibration.calibrate import CalibrateResult
    from adctl.config import DemoSettings, S
    from adctl.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class DemoResult:
    """Result of `demo`.

    Attributes:
        model: Calibrated model file.
        heatmaps: Folder of heatmaps and scores.
        page: Report file.
        evaluation: Metrics of the report.
        seconds: Duration of all steps.
    """

    model: Path
    heatmaps: Path
    page: Path
    evaluation: Evaluation
    seconds: float


def demo(loaded: LoadedSettings[DemoSettings], reporter: Reporter = SILENT) -> DemoResult:
    """Run the commands one after another; each step takes the settings that it shares with `adctl demo`."""
    shared = asdict(loaded.settings)
    start = time.perf_counter()
    calibrated = train_and_calibrate(loaded.settings, reporter)
    heatmaps = calibrated.source.parent / "heatmaps"
    score(_step(ScoreSettings, shared, model=calibrated.model, out=heatmaps), reporter)
    reported = report(_step(ReportSettings, shared, scores=(heatmaps,)), reporter)
    return DemoResult(
        model=calibrated.model,
        heatmaps=heatmaps,
        page=reported.page,
        evaluation=reported.evaluation,
        seconds=time.perf_counter() - start,
    )


def train_and_calibrate(settings: DemoSettings, reporter: Reporter) -> CalibrateResult:
    """Fetch the generated zippers, train on them, and calibrate for one false alarm in ten."""
    shared = asdict(settings)
    fetch_dataset("demo", reporter=reporter)
    trained = train_once(_step(TrainSettings, shared, dataset="demo", category="zipper"), reporter)
    assert trained is not None, "the demo runs in one process"
    return calibrate(_step(CalibrateSettings, shared, model=trained.model, max_false_alarm=0.1), reporter)


def _step(cls: type[S], shared: dict[str, Any], **own: Any) -> LoadedSettings[S]:
    """Return the settings of one step: those that it shares with the demo, and its own."""
    values = {name: value for name, value in shared.items() if name in names_of(cls)} | own
    origins = {name: "demo" if name in values else "default" for name in names_of(cls)}
    return LoadedSettings(cls(**values), origins)
