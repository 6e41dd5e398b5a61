"""From a scored set to its report."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adctl import run_folder
from adctl.choices import REPORT_FORMATS
from adctl.errors import UsageError, unknown_name
from adctl.evaluation.evaluate import Evaluation, evaluate
from adctl.gates import Gate, GateResult, check, write_junit
from adctl.metrics.bootstrap import Resampling
from adctl.progress import SILENT, Reporter
from adctl.reporting.contact_sheet import write_contact_sheet
from adctl.reporting.content import ReportOptions
from adctl.reporting.named_metrics import named_metrics
from adctl.scoring.score_set import ScoreSet

if TYPE_CHECKING:
    from pathlib import Path

    from adctl.config import LoadedSettings, ReportSettings


@dataclass(frozen=True)
class ReportResult:
    """What reporting made.

    Attributes:
        scores: The folder of scores it rests on.
        page: The report; of several formats the first.
        evaluation: The metrics in it.
        gates: What became of the conditions set.
        files: Every file of the report.
        contact_sheet: The picture of all images; None where none was asked for.
    """

    scores: Path
    page: Path
    evaluation: Evaluation
    gates: tuple[GateResult, ...] = ()
    files: tuple[Path, ...] = ()
    contact_sheet: Path | None = None


def report(loaded: LoadedSettings[ReportSettings], reporter: Reporter = SILENT) -> ReportResult:
    """Evaluate a scored set and write what it is worth, in one or several formats.

    Args:
        loaded: The settings.
        reporter: Told how far it is.

    Raises:
        UsageError: There are no scores, or a condition cannot be understood.
        DataError: They are damaged.
        MissingExtraError: The format needs an extra that is not installed.
        OutputError: The report cannot be written.
    """
    settings = loaded.settings
    if len(settings.scores) > 1:
        raise UsageError("A report is of one scored set.", "Compare several with adctl.compare(scores=[...]).")
    if settings.animation is not None:
        raise UsageError(
            "--animation shows the maps of several models in turn, and there is one.",
            "Name several folders of scores: adctl report A B.",
        )
    gates = _gates(settings)
    formats = _formats(settings)
    folder = settings.scores[0] if settings.scores else run_folder.get_last(settings.runs, "scores")
    scores = ScoreSet.load(folder)
    # Drawing images again costs little where only their scores are measured; maps are read once more for it.
    resampling = Resampling(settings.ci_samples, settings.ci_level, settings.seed)
    with reporter.stage("evaluating"):
        evaluation = evaluate(scores, resampling, pixel_intervals=settings.ci)
    results = _checked(gates, evaluation, folder, settings.junit)
    with reporter.stage("writing the report"):
        targets = _targets(formats, settings, folder)
        options = ReportOptions(
            title=settings.title, findings=settings.findings, reconstructions=settings.reconstructions
        )
        for name, path in targets:
            pkgutil.resolve_name(REPORT_FORMATS[name].writer)(scores, evaluation, path, options)
        if settings.contact_sheet is not None:
            write_contact_sheet(settings.contact_sheet, scores)
    written = tuple(path for _, path in targets)
    return ReportResult(folder, written[0], evaluation, results, written, settings.contact_sheet)


def _formats(settings: ReportSettings) -> tuple[str, ...]:
    """Those asked for, else what the file's name ends in."""
    if settings.format:
        return tuple(dict.fromkeys(settings.format))
    if settings.out is None or not settings.out.suffix:
        return ("html",)
    ending = settings.out.suffix[1:].lower()
    for name, one in REPORT_FORMATS.items():
        if ending in (name, *one.aliases):
            return (name,)
    raise unknown_name("format in --out", ending, REPORT_FORMATS)


def _targets(formats: tuple[str, ...], settings: ReportSettings, folder: Path) -> list[tuple[str, Path]]:
    """Format and file; several formats share a name and differ in how it ends."""
    out = settings.out or folder / "report"
    if settings.out is not None and len(formats) == 1:
        return [(formats[0], out)]
    stem = out.with_suffix("") if out.suffix[1:].lower() in REPORT_FORMATS else out
    return [(name, stem.with_name(f"{stem.name}.{name}")) for name in formats]


def _gates(settings: ReportSettings) -> list[Gate]:
    if settings.junit is not None and not settings.fail_if:
        raise UsageError("--junit has nothing to write without a condition.", "Add --fail-if 'image_auroc<0.95'.")
    return [Gate.parse(text) for text in settings.fail_if]


def _checked(gates: list[Gate], evaluation: Evaluation, folder: Path, junit: Path | None) -> tuple[GateResult, ...]:
    """Hold the conditions against the metrics, and write what became of them where that was asked for."""
    found = named_metrics(evaluation)
    values = {name: figure.value for name, figure in found.items()}
    results = check(gates, values, folder.name, {name: figure.reason for name, figure in found.items()})
    if junit is not None:
        write_junit(junit, "adctl.report", results)
    return tuple(results)
