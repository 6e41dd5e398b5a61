"""Report of a scored set in one or several formats."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adctl import files, run_folder
from adctl.choices import REPORT_FORMATS
from adctl.errors import UsageError
from adctl.evaluation.evaluate import Evaluation, evaluate
from adctl.gate_files import gate_files, require_conditions, write_gate_files
from adctl.gates import Gate, GateResult, check
from adctl.metrics.bootstrap import Resampling
from adctl.progress import SILENT, Reporter
from adctl.reporting.charts import drawings, figure_files, write_figures
from adctl.reporting.contact_sheet import write_contact_sheet
from adctl.reporting.content import ReportOptions
from adctl.reporting.named_metrics import named_metrics
from adctl.reporting.targets import find_targets
from adctl.scoring.score_set import MANIFEST, ScoreSet
from adctl.tracking import record

if TYPE_CHECKING:
    from adctl.config import LoadedSettings, ReportSettings


@dataclass(frozen=True)
class ReportResult:
    """Result of a report.

    Attributes:
        scores: Folder of the scored set.
        page: File of the report, in the first of several formats.
        evaluation: Metrics in the report.
        gates: Result of each condition.
        files: All files of the report.
        contact_sheet: Picture of the images, or None if it was not wanted.
        figures: Charts as SVG and PDF files.
    """

    scores: Path
    page: Path
    evaluation: Evaluation
    gates: tuple[GateResult, ...] = ()
    files: tuple[Path, ...] = ()
    contact_sheet: Path | None = None
    figures: tuple[Path, ...] = ()


def report(loaded: LoadedSettings[ReportSettings], reporter: Reporter = SILENT) -> ReportResult:
    """Evaluate a scored set and write the report in one or several formats.

    Args:
        loaded: Settings.
        reporter: Receiver of progress reports.

    Raises:
        UsageError: There are no scores, or a condition is invalid.
        DataError: The scores are damaged.
        MissingExtraError: A format needs an extra that is not installed.
        OutputError: A file cannot be written.
    """
    settings = loaded.settings
    if len(settings.scores) > 1:
        raise UsageError("A report is about one scored set.", "Compare several sets with adctl.compare(scores=[...]).")
    if settings.animation is not None:
        raise UsageError(
            "--animation shows the heatmaps of several models in turn, but only one scored set was named.",
            "Name two or more folders of scores: adctl report A B.",
        )
    gates = _gates(settings)
    folder = settings.scores[0] if settings.scores else run_folder.get_last(settings.runs, "scores")
    targets = find_targets(settings, folder / "report", REPORT_FORMATS)
    outputs = [path for _, path in targets]
    others = [*gate_files(settings).values(), settings.contact_sheet]
    others += figure_files(settings.figures) if settings.figures is not None else []
    files.require_replaceable([*outputs, *others], overwrite=settings.overwrite)
    scores = ScoreSet.load(folder)
    # Intervals of image metrics take little time; intervals of pixel metrics read all maps a second time.
    resampling = Resampling(settings.ci_samples, settings.ci_level, settings.seed)
    with reporter.stage("evaluating"):
        evaluation = evaluate(scores, resampling, pixel_intervals=settings.ci, pixel_size=settings.pixel_size)
    results = _check_gates(gates, evaluation, folder)
    write_gate_files(settings, "adctl.report", results, {folder.name: folder / MANIFEST})
    with reporter.stage("writing the report"):
        options = ReportOptions(
            title=settings.title, findings=settings.findings, reconstructions=settings.reconstructions
        )
        for name, path in targets:
            pkgutil.resolve_name(REPORT_FORMATS[name].writer)(scores, evaluation, path, options)
        if settings.contact_sheet is not None:
            write_contact_sheet(settings.contact_sheet, scores)
        figures = () if settings.figures is None else write_figures(settings.figures, drawings(scores, evaluation))
    _track(scores, folder, outputs[0], evaluation)
    return ReportResult(folder, outputs[0], evaluation, results, tuple(outputs), settings.contact_sheet, tuple(figures))


def _track(scores: ScoreSet, folder: Path, report: Path, evaluation: Evaluation) -> None:
    """Note the report and its metrics in the run of the model."""
    metrics, intervals = {}, {}
    for name, metric in named_metrics(evaluation).items():
        if metric.value is not None:
            metrics[name] = float(metric.value)
        if metric.interval is not None:
            intervals[name] = (metric.interval.low, metric.interval.high)
    model = (scores.manifest.get("model") or {}).get("path")
    if model is None:  # a set that another program wrote
        return
    record.made(Path(model), "report", report, source=folder, metrics=metrics, intervals=intervals)


def _gates(settings: ReportSettings) -> list[Gate]:
    require_conditions(settings)
    return [Gate.parse(text) for text in settings.fail_if]


def _check_gates(gates: list[Gate], evaluation: Evaluation, folder: Path) -> tuple[GateResult, ...]:
    metrics = named_metrics(evaluation)
    values = {name: metric.value for name, metric in metrics.items()}
    return tuple(check(gates, values, folder.name, {name: metric.reason for name, metric in metrics.items()}))
