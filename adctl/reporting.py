"""From a scored set to its report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl import runs
from adctl.errors import UsageError
from adctl.metrics.intervals import Resampling
from adctl.progress import SILENT, Reporter
from adctl.report.evaluate import Evaluation, evaluate
from adctl.report.page import write_report
from adctl.scores import ScoreSet

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.config import Loaded, ReportSettings


@dataclass(frozen=True)
class ReportResult:
    """What reporting made.

    Attributes:
        scores: The folder of scores it rests on.
        page: The HTML file.
        evaluation: The metrics in it.
    """

    scores: Path
    page: Path
    evaluation: Evaluation


def report(loaded: Loaded[ReportSettings], reporter: Reporter = SILENT) -> ReportResult:
    """Evaluate a scored set and write it as one HTML page.

    Args:
        loaded: The settings.
        reporter: Told how far it is.

    Raises:
        UsageError: There are no scores.
        DataError: They are damaged.
        OutputError: The page cannot be written.
    """
    settings = loaded.settings
    if len(settings.scores) > 1:
        raise UsageError("A report is of one scored set.", "Compare several with adctl.compare(scores=[...]).")
    if settings.animation is not None:
        raise UsageError(
            "--animation shows the maps of several models in turn, and there is one.",
            "Name several folders of scores: adctl report A B.",
        )
    folder = settings.scores[0] if settings.scores else runs.last(settings.runs, "scores")
    scores = ScoreSet.load(folder)
    resampling = Resampling(settings.ci_samples, settings.ci_level, settings.seed) if settings.ci else None
    with reporter.stage("evaluating"):
        evaluation = evaluate(scores, resampling)
    with reporter.stage("writing the report"):
        page = write_report(scores, evaluation, settings.out or folder / "report.html", title=settings.title)
    return ReportResult(folder, page, evaluation)
