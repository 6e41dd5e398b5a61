"""Command `adctl score`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from adctl.cli.classifier_text import find_classifier, score_kinds
from adctl.cli.output import Call, rows
from adctl.cli.sinks_text import describe_sink

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import RenderableType

    from adctl.config import ScoreSettings
    from adctl.scoring.score import ScoreResult, TopAnomaly

ANOMALIES_FOUND = 3
_UNJUDGED = 1
_FILES = ("results.csv, results.jsonl", "Parquet parts, listed in scores.json")
_REPORT = "report.html"
_COUNTED = {
    "good": "good",
    "warn": "to inspect",
    "reject": "rejected",
    "uncalibrated": "without a verdict",
    "error": "not scored",
}


def run(call: Call[ScoreSettings]) -> int:
    """Score images, or watch a folder; return 3 for a rejected image if --fail-on-anomaly is given."""
    from adctl.files import require_replaceable

    settings = call.settings
    if settings.report and settings.out is not None:
        require_replaceable([settings.out / _REPORT], overwrite=settings.overwrite)
    if _is_registry(settings):
        return _score_products(call)
    if (model := find_classifier(settings)) is not None:
        return score_kinds(call, model)
    result = _score(call)
    if settings.report and len(result):
        result = replace(result, report=_write_report(call, result.folder))
    call.finish(result, lambda: _text(result, settings))
    return _exit_code(result.counts, settings)


def _exit_code(counts: dict[str, int], settings: ScoreSettings) -> int:
    if not settings.fail_on_anomaly:
        return 0
    # An image that could not be judged must not pass a gate either.
    return ANOMALIES_FOUND if counts["reject"] else _UNJUDGED if counts["error"] else 0


def _is_registry(settings: ScoreSettings) -> bool:
    from adctl.scoring.registry import is_registry

    return is_registry(settings.model)


def _score_products(call: Call[ScoreSettings]) -> int:
    """Score with a registry; each product has a report if one is wanted."""
    from adctl.cli.products_text import products_text
    from adctl.errors import UsageError
    from adctl.scoring.products import score_products

    if call.settings.ray is not None:
        raise UsageError("--ray takes one model, not a registry.", "Score the images of each product by themselves.")
    if call.settings.watch is not None or call.settings.source:
        raise UsageError(
            "--watch and --source take one model, not a registry.", "Watch the folder of each product by itself."
        )
    result = score_products(call.loaded, call.reporter)
    if call.settings.report:
        reports = {name: _write_report(call, one.folder) for name, one in result.products.items()}
        own = {name: replace(one, report=reports[name]) for name, one in result.products.items()}
        result = replace(result, products=own)
    call.finish(result, lambda: products_text(result))
    return _exit_code(result.counts, call.settings)


def _score(call: Call[ScoreSettings]) -> ScoreResult:
    if call.settings.source:
        from adctl.line.scoring import score_sources

        return score_sources(call.loaded, call.reporter)
    if call.settings.watch is not None:
        from adctl.scoring.watch import watch

        return watch(call.loaded, call.reporter)
    if call.settings.ray is not None:
        from adctl.scoring import ray_score

        return ray_score.score(call.loaded, call.reporter)
    from adctl.scoring.score import score

    return score(call.loaded, call.reporter)


def _write_report(call: Call[ScoreSettings], scores: Path) -> Path:
    """Write the report of the scores beside them, as `adctl report` does by default."""
    from adctl.config import LoadedSettings, ReportSettings, names_of
    from adctl.reporting.report import report

    settings = ReportSettings(scores=(scores,), overwrite=call.settings.overwrite)
    origins = dict.fromkeys(names_of(ReportSettings), "default")
    return report(LoadedSettings(settings, origins), call.reporter).page


def _text(result: ScoreResult, settings: ScoreSettings) -> RenderableType:
    from rich.console import Group

    rejected = [part for table in _rejected(result) for part in ("", table, "")]
    return Group(_summary(result, settings), *rejected, rows(_to_open(result, settings)))


def _summary(result: ScoreResult, settings: ScoreSettings) -> RenderableType:
    counted = ", ".join(f"{count} {_COUNTED[verdict]}" for verdict, count in result.counts.items() if count) or "none"
    return rows(
        [
            ("model", str(result.model)),
            ("images", f"{counted} in {result.seconds:.1f} s ({result.images_per_second:.1f} images/s)"),
            *([("threshold", _thresholds(result))] if result.threshold is not None else []),
            *([("ignored", f"{len(result.ignored)} files; scores.json gives the reasons")] if result.ignored else []),
            *([("kinds", _kinds(result))] if result.classifier is not None else []),
            ("results", f"{result.folder}: {_FILES[settings.ray is not None]}"),
            *((status.name, describe_sink(status)) for status in result.sinks),
        ]
    )


def _rejected(result: ScoreResult) -> Iterator[RenderableType]:
    """Yield the table of the rejected images with the highest scores."""
    worst = [image for image in result.strangest if image.verdict == "reject"]
    if worst:
        count = result.counts["reject"]
        title = "rejected" if count == len(worst) else f"worst {len(worst)} of {count} rejected"
        kinds = ("kind",) if result.classifier is not None else ()
        lines = [(image.path, f"{image.score:.6g}", f"{image.p_value:.3g}", *_kind(image, kinds)) for image in worst]
        yield rows(lines, title, "score", "p-value", *kinds)


def _kind(image: TopAnomaly, kinds: tuple[str, ...]) -> Iterator[str]:
    """Yield the name of an image if there is a column for it."""
    for _ in kinds:
        yield image.kind or "-"


def _kinds(result: ScoreResult) -> str:
    """Return how many images have each name, and the classifier."""
    counted = ", ".join(f"{count} {kind}" for kind, count in result.kinds.items()) or "none named"
    return f"{counted} (by {result.classifier})"


def _to_open(result: ScoreResult, settings: ScoreSettings) -> Iterator[tuple[str, str]]:
    """Yield the file or folder to open, and the command that makes the report."""
    from adctl.scoring.score import wants_heatmaps

    if result.report is not None:
        yield "open", str(result.report)
        return
    if wants_heatmaps(settings):
        yield "open", f"{result.folder}: a heatmap of each image"
    yield "next", "adctl report"


def _thresholds(result: ScoreResult) -> str:
    warn = f"; warning above {result.warn_threshold:.6g}" if result.warn_threshold is not None else ""
    return f"{result.threshold:.6g} ({result.method}){warn}"
