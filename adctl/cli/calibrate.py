"""`adctl calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adctl.cli import options as opt
from adctl.cli.output import Call, rows, sparkline

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.calibration.calibrate import CalibrateResult
    from adctl.calibration.learning_curve import LearningCurve
    from adctl.records import Calibration

_METHODS = "percentile, sigma, mad, tail, conformal, f1, precision, recall, cost or fixed"


def calibrate(
    ctx: typer.Context,
    model: opt.Model = None,
    max_false_alarm: Annotated[
        float | None, opt.value("Promise at most this rate of false alarms: method conformal, or tail.", metavar="RATE")
    ] = None,
    percentile: Annotated[float | None, opt.value("Percentile of good scores: 99 unless given.", metavar="X")] = None,
    sigmas: Annotated[
        float | None, opt.value("Sigmas above the mean, or for mad above the median: 3 unless given.", metavar="K")
    ] = None,
    min_precision: Annotated[float | None, opt.value("Share of alarms that must be defects.", metavar="SHARE")] = None,
    min_recall: Annotated[float | None, opt.value("Share of defects that must be found.", metavar="SHARE")] = None,
    cost_miss: Annotated[float | None, opt.value("Cost of a missed defect; least cost wins.", metavar="X")] = None,
    cost_alarm: Annotated[float | None, opt.value("Cost of a false alarm.", metavar="X")] = None,
    defect_rate: Annotated[
        float | None, opt.value("Share of defects on the line, for costs; else that of the images.", metavar="SHARE")
    ] = None,
    threshold: Annotated[float | None, opt.value("The threshold itself, in score units.", metavar="X")] = None,
    method: Annotated[str | None, opt.value(f"{_METHODS}; else the one whose level is given.")] = None,
    warn_at: Annotated[
        float | None, opt.value("Level of a second, lower threshold, by the same method.", metavar="X")
    ] = None,
    good: Annotated[Path | None, opt.value("Other good images than those held out at training.", metavar="DIR")] = None,
    defects: Annotated[Path | None, opt.value("Labelled defective images.", metavar="DIR")] = None,
    scores: Annotated[
        Path | None, opt.value("Labelled scores that 'adctl score' wrote, instead of images.", metavar="DIR")
    ] = None,
    folds: Annotated[
        int | None, opt.value("Fit K models so that every good image is learned from and scored.", metavar="K")
    ] = None,
    learning_curve: Annotated[
        bool | None, typer.Option("--learning-curve", help="Find out how many good images are enough.")
    ] = None,
    tta: Annotated[
        str | None, opt.value("Views to average over: hflip, vflip, rot90, transpose; or none.", metavar="VIEW,VIEW")
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
    from adctl.config import CalibrateSettings

    loaded = call.settings(CalibrateSettings)
    if loaded.settings.learning_curve:
        from adctl.calibration.learning_curve import learning_curve as draw_curve

        curve = draw_curve(loaded, call.reporter)
        call.finish(curve, lambda: _curve_text(curve))
        return
    from adctl.calibration.calibrate import calibrate as calibrate_model

    result = calibrate_model(loaded, call.reporter)
    call.finish(result, lambda: _text(result))


def _text(result: CalibrateResult) -> RenderableType:
    chosen, before = result.calibration, result.previous
    basis = f"{chosen.good_images} good images"
    if chosen.defect_images:
        basis += f" and {chosen.defect_images} defective ones"
    if chosen.evidence.folds:
        basis += f", each scored by one of {chosen.evidence.folds} models that had not seen it"
    was = f" (was {before.threshold:.6g})" if before else ""
    warn = [("warn above", f"{chosen.warn_threshold:.6g}")] if chosen.warn_threshold is not None else []
    return rows(
        [
            ("model", str(result.model)),
            ("method", f"{chosen.method} {chosen.level:.4g}"),
            ("threshold", f"{chosen.threshold:.6g}{was}, from {basis}"),
            *warn,
            ("false alarms", false_alarms(chosen)),
        ]
    )


def false_alarms(chosen: Calibration) -> str:
    """What may be said of the rate of false alarms, and whether it is a promise."""
    if chosen.promised_false_alarm is not None:
        return f"at most {100 * chosen.promised_false_alarm:.3g} % of new good images: promised, if they are like these"
    why = " by folds: no promise, met where the model is stable" if chosen.evidence.folds else ": no promise"
    return f"about {100 * chosen.expected_false_alarm:.3g} % of new good images expected{why}"


def _curve_text(curve: LearningCurve) -> RenderableType:
    from rich.console import Group

    aurocs = bool(curve.defects)
    values = [point.auroc if aurocs else point.score for point in curve.points]
    lines = [
        (
            str(point.images),
            f"{value:.4g}",
            _spread(point.aurocs or point.scores),
            f"{point.seconds:.1f} s",
        )
        for point, value in zip(curve.points, values, strict=True)
    ]
    measure = "image AUROC" if aurocs else "score of unseen good images"
    return Group(
        rows(lines, "good images", measure, "from - to", "time"),
        rows(
            [
                ("curve", sparkline([value for value in values if value is not None])),
                ("answer", curve.answer.text),
                ("results", f"{curve.folder}: learning_curve.json, learning_curve.png"),
            ]
        ),
    )


def _spread(values: tuple[float, ...]) -> str:
    return f"{min(values):.4g} - {max(values):.4g}" if len(values) > 1 else ""
