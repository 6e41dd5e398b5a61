"""Command `adctl report`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.classifier_text import report_kinds
from adctl.cli.comparison_text import comparison_text
from adctl.cli.metrics_text import metrics_table
from adctl.cli.output import Call, rows
from adctl.gates import exit_code

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.config import ReportSettings
    from adctl.reporting.report import ReportResult


def run(call: Call[ReportSettings]) -> int:
    """Report on one scored set, or compare several; return 3 if a gate failed."""
    if len(call.settings.scores) > 1:
        from adctl.reporting.compare import compare

        comparison = compare(call.loaded, call.reporter)
        call.finish(comparison, lambda: comparison_text(comparison))
        return 0
    from adctl.reporting.classifier_report import find_predictions
    from adctl.reporting.report import report

    if (folder := find_predictions(call.settings)) is not None:
        return report_kinds(call, folder)
    result = report(call.loaded, call.reporter)
    call.finish(result, lambda: _text(result))
    call.annotate("adctl report", result.gates, result.evaluation.notes)
    return exit_code(result.gates)


def _text(result: ReportResult) -> RenderableType:
    from rich.console import Group

    files = [("report", str(file)) for file in result.files]
    files += [("contact sheet", str(result.contact_sheet))] if result.contact_sheet else []
    files += [("figures", ", ".join(map(str, result.figures)))] if result.figures else []
    shown = [metrics_table(result.evaluation, files)]
    if result.gates:
        gates = [("passed" if gate.passed else "FAILED", gate.gate, gate.message) for gate in result.gates]
        shown += ["", rows(gates, "gate", "", "")]
    return Group(*shown)
