"""Text of `adctl train --task classify`, and of `adctl score` and `adctl report` with a classifier."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows
from adctl.errors import UsageError
from adctl.gates import exit_code
from adctl.records import GOOD

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from adctl.classification.predictions import UnknownShares
    from adctl.classification.training.grid import ClassifierGridResult
    from adctl.classification.training.results import ClassifierResult
    from adctl.classification.training.train import ClassifierForecast
    from adctl.config import CalibrateSettings, ReportSettings, ScoreSettings, TrainSettings
    from adctl.metrics.classification import ClassificationMetrics, KindMetrics
    from adctl.scoring.classify import KindsResult

_SHOWN = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "macro_auroc": "macro AUROC",
    "ece": "calibration error",
}
"""Metrics that are shown, with their names for a reader."""
_NOT_GOOD = 3
"""Exit code with --fail-on-anomaly."""


def run_classifier(call: Call[TrainSettings]) -> int:
    """Train a classifier or a grid, or show the plan of a training; return 1 if a model of a grid failed."""
    from adctl.classification.training.grid import ClassifierGridResult, train_classifiers
    from adctl.classification.training.train import forecast

    if call.asked("dry_run"):
        refuse_grid(call.settings)
        plan = forecast(call.loaded)
        call.finish(plan, lambda: _plan_text(plan))
        return 0
    result = train_classifiers(call.loaded, call.reporter)
    if isinstance(result, ClassifierGridResult):
        grid = result
        call.finish(grid, lambda: _grid_text(grid))
        return 1 if grid.failed else 0
    single = result
    call.finish(single, lambda: _text(single))
    return 0


def refuse_grid(settings: TrainSettings) -> None:
    """Raise if settings of a plan, or of --print-config, describe several trainings."""
    from adctl.classification.training.grid import is_grid

    if is_grid(settings):
        raise UsageError(
            "--dry-run and --print-config work for one training only.",
            "Give one value of each setting: head, --backbone, --balance and --seed.",
        )


def _grid_text(result: ClassifierGridResult) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding

    from adctl.classification.training.grid import SHARED_NOTE, recalls, table_of

    head, lines = table_of(result)
    failures = [("failed", f"{row.name}: {row.error}") for row in result.rows if row.error is not None]
    facts = [
        *failures,
        *([("note", SHARED_NOTE)] if any(row.shared for row in result.rows) else []),
        ("runs", str(result.folder)),
        ("tables", "summary.json, results.csv, table.md"),
    ]
    kinds = recalls(result)
    tables = [] if kinds is None else [rows(kinds[1], *kinds[0])]
    return Group(rows(lines, *head), *(Padding(part, (1, 0, 0, 0)) for part in (*tables, rows(facts))))


def calibrate_kinds(call: Call[CalibrateSettings], model: Path) -> None:
    """Calibrate a classifier anew."""
    from adctl.calibration.classifier import calibrate_classifier

    result = calibrate_classifier(call.loaded, model, call.reporter)
    new, old = result.decision, result.previous
    counts = ", ".join(f"{count} {kind}" for kind, count in result.images.items())
    lines = [
        ("model", str(result.model)),
        ("calibrated on", counts),
        ("temperature", f"{new.temperature:.4g} (was {old.temperature:.4g})"),
        ("unknown", f"at most {1 - new.known_share:.1%} of known kinds"),
        ("next", f"adctl score --model {result.model}"),
    ]
    call.finish(result, lambda: rows(lines))


def find_classifier(settings: CalibrateSettings | ScoreSettings) -> Path | None:
    """Return the model file that the settings mean if it is a classifier, or else None."""
    from adctl.classification.header import is_classifier
    from adctl.tracking.models import find_model

    model = find_model(settings.runs, settings.model)
    return model if is_classifier(model) else None


def score_kinds(call: Call[ScoreSettings], model: Path) -> int:
    """Score by a classifier; return 3 with --fail-on-anomaly if an image is not called good, 1 for unreadable ones."""
    from adctl.scoring.classify import classify_images

    settings = call.settings
    result = classify_images(call.loaded, model, call.reporter)
    if settings.report:
        from adctl.config import LoadedSettings, ReportSettings, names_of
        from adctl.reporting.classifier_report import report_classifier

        wanted = ReportSettings(scores=(result.folder,), overwrite=settings.overwrite)
        loaded = LoadedSettings(wanted, dict.fromkeys(names_of(ReportSettings), "default"))
        result = replace(result, report=report_classifier(loaded, result.folder, call.reporter).page)
    call.finish(result, lambda: _kinds_text(result))
    if not settings.fail_on_anomaly:
        return 0
    if set(result.counts) - {GOOD, "error"}:
        return _NOT_GOOD
    return int("error" in result.counts)


def _kinds_text(result: KindsResult) -> RenderableType:
    counted = ", ".join(f"{count} {name}" for name, count in result.counts.items())
    speed = len(result) / result.seconds
    return rows(
        [
            ("model", str(result.model)),
            ("images", f"{counted} in {result.seconds:.1f} s ({speed:.1f} images/s)"),
            *_metric_lines(result.metrics, result.unknown),
            ("results", f"{result.folder}: predictions.csv, predictions.json"),
            ("open", str(result.report)) if result.report else ("next", "adctl report"),
        ]
    )


def report_kinds(call: Call[ReportSettings], folder: Path) -> int:
    """Report on the predictions of a classifier; return 3 if a gate failed."""
    from adctl.reporting.classifier_report import report_classifier

    result = report_classifier(call.loaded, folder, call.reporter)
    lines = [("report", str(result.page)), *_metric_lines(result.metrics, result.unknown)]
    lines += [("passed" if gate.passed else "FAILED", gate.message) for gate in result.gates]
    call.finish(result, lambda: rows(lines))
    call.annotate("adctl report", result.gates)
    return exit_code(result.gates)


def _metric_lines(metrics: ClassificationMetrics | None, unknown: UnknownShares | None) -> list[tuple[str, str]]:
    if metrics is None or unknown is None:
        return []
    named = ", ".join(f"{label} {_number(metrics.overall[name])}" for name, label in _SHOWN.items())
    unseen = ", ".join(f"{share:.0%} of {kind}" for kind, share in unknown.unseen.items())
    return [
        ("metrics", named),
        ("unknown", f"{unknown.known:.1%} of images of known kinds" + (f"; new kinds: {unseen}" if unseen else "")),
    ]


def _text(result: ClassifierResult) -> RenderableType:
    from rich.console import Group

    table = rows(
        [_kind_line(kind) for kind in result.metrics.kinds], "kind", "images", "recall", "95 %", "precision", "F1"
    )
    return Group(
        rows(
            [
                ("model", str(result.model)),
                ("trained on", f"{result.images} images of {len(result.classes)} kinds in {result.seconds:.1f} s"),
                ("tested on", f"{result.test_images} images"),
                *_metric_lines(result.metrics, result.unknown),
                *_folds(result),
                *((f"note {number}", note) for number, note in enumerate(result.notes, 1)),
            ]
        ),
        "",
        table,
        "",
        rows([("open", f"{result.run}: report.html, predictions.csv, auc_scores.csv and curves")]),
    )


def _kind_line(kind: KindMetrics) -> tuple[str, ...]:
    interval = kind.recall_interval
    span = "" if interval is None else f"{interval.low:.2f}-{interval.high:.2f}"
    return kind.name, str(kind.support), _number(kind.recall), span, _number(kind.precision), _number(kind.f1)


def _folds(result: ClassifierResult) -> list[tuple[str, str]]:
    if result.folds is None:
        return []
    score = result.folds.spreads["macro_f1"]
    ensembles = ", ".join(f"{name} {_number(one['macro_f1'])}" for name, one in result.folds.ensembles.items())
    return [
        ("folds", f"macro f1 {score}, best fold {result.folds.best}"),
        ("ensembles", f"macro f1 on the test images by {ensembles}"),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _plan_text(plan: ClassifierForecast) -> RenderableType:
    counts = {part: ", ".join(f"{name} {count}" for name, count in own.items()) for part, own in plan.images.items()}
    return rows(
        [
            ("dataset", plan.dataset),
            *((part, text) for part, text in counts.items() if text),
            ("classifier", ", ".join(f"{name} {value}" for name, value in plan.config.items())),
            ("device", plan.device),
        ]
    )
