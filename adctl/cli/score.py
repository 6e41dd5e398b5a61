"""Command `adctl score`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.config import ScoreSettings
    from adctl.scoring.score import ScoreResult

ANOMALIES_FOUND = 3
_UNJUDGED = 1
_COUNTED = {
    "good": "good",
    "warn": "to inspect",
    "reject": "rejected",
    "uncalibrated": "without a verdict",
    "error": "not scored",
}


def run(call: Call[ScoreSettings]) -> int:
    """Score images, or watch a folder; return 3 for a rejected image if --fail-on-anomaly is given."""
    if call.settings.watch is None:
        from adctl.scoring.score import score

        result = score(call.loaded, call.reporter)
    else:
        from adctl.scoring.watch import watch

        result = watch(call.loaded, call.reporter)
    call.finish(result, lambda: _text(result))
    if not call.settings.fail_on_anomaly:
        return 0
    # An image that could not be judged must not pass a gate either.
    return ANOMALIES_FOUND if result.counts["reject"] else _UNJUDGED if result.counts["error"] else 0


def _text(result: ScoreResult) -> RenderableType:
    counted = ", ".join(f"{count} {_COUNTED[verdict]}" for verdict, count in result.counts.items() if count) or "none"
    return rows(
        [
            ("model", str(result.model)),
            ("images", f"{counted} in {result.seconds:.1f} s ({result.images_per_second:.1f} images/s)"),
            *([("threshold", _thresholds(result))] if result.threshold is not None else []),
            *([("drift", result.drift.reason)] if result.drift and result.drift.drifted else []),
            *([("ignored", f"{len(result.ignored)} files; scores.json gives the reasons")] if result.ignored else []),
            ("results", f"{result.folder}: results.csv, results.jsonl"),
            ("next", "adctl report"),
        ]
    )


def _thresholds(result: ScoreResult) -> str:
    warn = f"; warning above {result.warn_threshold:.6g}" if result.warn_threshold is not None else ""
    return f"{result.threshold:.6g}{warn}"
