"""`adctl score`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adctl.choices import RUNTIMES
from adctl.cli import options as opt
from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.scoring.score import ScoreResult

ANOMALIES_FOUND = 3
_UNJUDGED = 1
_COUNTED = {
    "good": "good",
    "warn": "to look at",
    "reject": "rejected",
    "uncalibrated": "without verdict",
    "error": "not scored",
}


def score(
    ctx: typer.Context,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Folders, files or globs; the test images of the model's data set when left out."),
    ] = None,
    model: opt.Model = None,
    out: Annotated[Path | None, opt.value("Folder for heatmaps and results.", metavar="DIR")] = None,
    heatmaps: Annotated[
        bool | None,
        typer.Option(help="Write a heatmap picture of each image; on when --out is given.", show_default=False),
    ] = None,
    draw: Annotated[
        str | None,
        opt.value("On heatmaps, around regions: none, contours, boxes or both.", default="none", metavar="WHAT"),
    ] = None,
    maps: Annotated[
        bool | None,
        typer.Option(help="Keep raw anomaly maps in maps.h5, for the report.", show_default="maps"),
    ] = None,
    tta: Annotated[
        str | None, opt.value("Views to average over; those of the calibration when left out.", metavar="VIEW,VIEW")
    ] = None,
    fail_on_anomaly: Annotated[
        bool | None, typer.Option("--fail-on-anomaly", help="Exit with 3 when an image is rejected.")
    ] = None,
    watch: Annotated[
        Path | None,
        opt.value("Score images as they arrive in this folder, each once across restarts.", metavar="DIR"),
    ] = None,
    watch_for: Annotated[
        float | None, opt.value("Stop watching after so many seconds; Ctrl-C when left out.", metavar="SECONDS")
    ] = None,
    watch_idle: Annotated[
        float | None, opt.value("Stop watching when nothing came for so long.", metavar="SECONDS")
    ] = None,
    settle: Annotated[
        float | None,
        opt.value("Time a watched file must stand still before it is read.", default="2.0", metavar="SECONDS"),
    ] = None,
    runtime: Annotated[
        str | None,
        opt.value(
            f"What computes: auto (the fastest proved equal to torch), {', '.join(RUNTIMES)}.",
            default="auto",
        ),
    ] = None,
    batch_size: opt.BatchSize = None,
    device: opt.Device = None,
    gpu: opt.Gpu = None,
    workers: opt.Workers = None,
    runs: opt.Runs = None,
    config: opt.Config = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Find what is wrong with new images: a score, a map and a verdict for each."""
    call = Call(ctx)
    from adctl.config import ScoreSettings
    from adctl.scoring.score import score as score_images
    from adctl.scoring.watch import watch as watch_folder

    loaded = call.settings(ScoreSettings)
    result = (score_images if loaded.settings.watch is None else watch_folder)(loaded, call.reporter)
    call.finish(result, lambda: _text(result))
    if loaded.settings.fail_on_anomaly:
        # An image that could not be judged must not pass a gate either.
        code = ANOMALIES_FOUND if result.counts["reject"] else _UNJUDGED if result.counts["error"] else 0
        raise typer.Exit(code)


def _text(result: ScoreResult) -> RenderableType:
    counted = ", ".join(f"{count} {_COUNTED[verdict]}" for verdict, count in result.counts.items() if count) or "none"
    return rows(
        [
            ("model", str(result.model)),
            ("images", f"{counted} in {result.seconds:.1f} s ({result.images_per_second:.1f} a second)"),
            *([("threshold", _thresholds(result))] if result.threshold is not None else []),
            *([("drift", result.drift.reason)] if result.drift and result.drift.drifted else []),
            *([("ignored", f"{len(result.ignored)} files; scores.json says why")] if result.ignored else []),
            ("results", f"{result.folder}: results.csv, results.jsonl"),
            ("next", "adctl report"),
        ]
    )


def _thresholds(result: ScoreResult) -> str:
    warn = f"; to look at above {result.warn_threshold:.6g}" if result.warn_threshold is not None else ""
    return f"{result.threshold:.6g}{warn}"
