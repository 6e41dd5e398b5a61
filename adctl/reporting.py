"""From a scored set to its report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl import runs
from adctl.errors import UsageError
from adctl.gates import Gate, GateResult, check, write_junit
from adctl.metrics.intervals import Resampling
from adctl.progress import SILENT, Reporter
from adctl.report.evaluate import Evaluation, evaluate
from adctl.report.figures import figures
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
        gates: What became of the conditions set.
    """

    scores: Path
    page: Path
    evaluation: Evaluation
    gates: tuple[GateResult, ...] = ()


def report(loaded: Loaded[ReportSettings], reporter: Reporter = SILENT) -> ReportResult:
    """Evaluate a scored set and write it as one HTML page.

    Args:
        loaded: The settings.
        reporter: Told how far it is.

    Raises:
        UsageError: There are no scores, or a condition cannot be understood.
        DataError: They are damaged.
        OutputError: The page cannot be written.
    """
    settings = loaded.settings
    gates = _gates(settings)
    folder = settings.scores or runs.last(settings.runs, "scores")
    scores = ScoreSet.load(folder)
    # Drawing images again costs little where only their scores are measured; maps are read once more for it.
    resampling = Resampling(settings.ci_samples, settings.ci_level, settings.seed)
    with reporter.stage("evaluating"):
        evaluation = evaluate(scores, resampling, pixel_intervals=settings.ci)
    results = _checked(gates, evaluation, folder, settings.junit)
    with reporter.stage("writing the report"):
        page = write_report(
            scores,
            evaluation,
            settings.out or folder / "report.html",
            title=settings.title,
            reconstructions=settings.reconstructions,
        )
    return ReportResult(folder, page, evaluation, results)


def _gates(settings: ReportSettings) -> list[Gate]:
    if settings.junit is not None and not settings.fail_if:
        raise UsageError("--junit has nothing to write without a condition.", "Add --fail-if 'image_auroc<0.95'.")
    return [Gate.parse(text) for text in settings.fail_if]


def _checked(gates: list[Gate], evaluation: Evaluation, folder: Path, junit: Path | None) -> tuple[GateResult, ...]:
    """Hold the conditions against the metrics, and write what became of them where that was asked for."""
    found = figures(evaluation)
    values = {name: figure.value for name, figure in found.items()}
    results = check(gates, values, folder.name, {name: figure.reason for name, figure in found.items()})
    if junit is not None:
        write_junit(junit, "adctl.report", results)
    return tuple(results)
