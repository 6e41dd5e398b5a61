"""The whole of adctl on generated zippers: fetch, train, calibrate, score, report."""

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

    from adctl.config import DemoSettings, S
    from adctl.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration made.

    Attributes:
        model: The calibrated model file.
        heatmaps: Folder of heatmaps and results.
        page: The report.
        evaluation: The metrics in it.
        seconds: From nothing to the report.
    """

    model: Path
    heatmaps: Path
    page: Path
    evaluation: Evaluation
    seconds: float


def demo(loaded: LoadedSettings[DemoSettings], reporter: Reporter = SILENT) -> DemoResult:
    """Run every step as the commands of the same names would.

    Args:
        loaded: The settings; those that a step shares are handed on to it.
        reporter: Told how far it is.
    """
    settings = loaded.settings
    start = time.perf_counter()
    fetch_dataset("demo", reporter=reporter)
    given = asdict(settings)
    trained = train_once(_step(TrainSettings, given, dataset="demo", category="zipper"), reporter)
    assert trained is not None, "a demo is not one of several processes"
    calibrated = calibrate(_step(CalibrateSettings, given, model=trained.model, max_false_alarm=0.1), reporter)
    heatmaps = trained.run / "heatmaps"
    score(_step(ScoreSettings, given, model=calibrated.model, out=heatmaps), reporter)
    reported = report(_step(ReportSettings, given, scores=(heatmaps,)), reporter)
    return DemoResult(
        model=calibrated.model,
        heatmaps=heatmaps,
        page=reported.page,
        evaluation=reported.evaluation,
        seconds=time.perf_counter() - start,
    )


def _step(cls: type[S], shared: dict[str, Any], **own: Any) -> LoadedSettings[S]:
    """Settings of one step: the demo's where they share a name, and its own."""
    values = {name: value for name, value in shared.items() if name in names_of(cls)} | own
    origins = {name: "demo" if name in values else "default" for name in names_of(cls)}
    return LoadedSettings(cls(**values), origins)
