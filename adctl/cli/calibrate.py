"""`adctl calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adctl.cli import options as opt
from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.calibrating import CalibrateResult


def calibrate(
    ctx: typer.Context,
    model: opt.Model = None,
    method: Annotated[
        str | None, opt.value("How to choose: percentile, false-alarm or f1.", default="percentile")
    ] = None,
    percentile: Annotated[
        float | None, opt.value("Percentile of held-out good scores.", default="99.0", metavar="X")
    ] = None,
    false_alarm: Annotated[float | None, opt.value("Target rate of false alarms.", default="0.01", metavar="X")] = None,
    good: Annotated[Path | None, opt.value("Other good images than those held out at training.", metavar="DIR")] = None,
    defects: Annotated[Path | None, opt.value("Labelled defective images, for --method f1.", metavar="DIR")] = None,
    tta: Annotated[
        str | None, opt.value("Views to average over: hflip, vflip, rot90, transpose.", metavar="VIEW,VIEW")
    ] = None,
    out: Annotated[Path | None, opt.value("Where the calibrated model goes.", metavar="FILE")] = None,
    in_place: Annotated[bool | None, typer.Option("--in-place", help="Replace the model file itself.")] = None,
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
    """Choose the threshold again, from good images the model has not learned from."""
    call = Call(ctx)
    from adctl.calibrating import calibrate as calibrate_model
    from adctl.config import CalibrateSettings

    result = calibrate_model(call.settings(CalibrateSettings), call.reporter)
    call.finish(result, lambda: _text(result))


def _text(result: CalibrateResult) -> RenderableType:
    chosen, before = result.calibration, result.previous
    basis = f"{chosen.good_images} good images"
    if chosen.defect_images:
        basis += f" and {chosen.defect_images} defective ones"
    was = f" (was {before.threshold:.6g})" if before else ""
    return rows(
        [
            ("model", str(result.model)),
            ("method", f"{chosen.method} {chosen.level:.4g}"),
            ("threshold", f"{chosen.threshold:.6g}{was}, from {basis}"),
            ("false alarms", f"about {chosen.expected_false_alarm:.1%} of good images expected, at most"),
        ]
    )
