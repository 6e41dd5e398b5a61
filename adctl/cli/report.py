"""`adctl report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adctl.choices import REPORT_FORMATS
from adctl.cli import options as opt
from adctl.cli.comparison import show_comparison
from adctl.cli.metrics import metrics_table
from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.reporting.report import ReportResult


def report(
    ctx: typer.Context,
    scores: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folder that 'adctl score' wrote; the last one when left out. Several are compared.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, opt.value("Where the report goes.", metavar="FILE")] = None,
    animation: Annotated[
        Path | None,
        opt.value("When comparing: also a moving picture of the maps, .gif, .webp or .png.", metavar="FILE"),
    ] = None,
    title: Annotated[str | None, opt.value("Title of the report.", metavar="TEXT")] = None,
    format: Annotated[  # noqa: A002 - as it is typed
        str | None,
        opt.value(f"{', '.join(REPORT_FORMATS)}; several with commas. What --out ends in, or html.", metavar="NAMES"),
    ] = None,
    findings: Annotated[
        int | None, opt.value("Images shown in md, pdf and pptx, mistakes first.", default="12", metavar="N")
    ] = None,
    reconstructions: Annotated[
        bool | None, typer.Option("--reconstructions", help="Show what an autoencoder makes of each image.")
    ] = None,
    contact_sheet: Annotated[
        Path | None, opt.value("PNG file with images beside their overlays, worst mistakes first.", metavar="FILE")
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        opt.value("Exit with 3 when it holds, as 'image_auroc<0.95'; may be repeated.", metavar="CONDITION"),
    ] = None,
    junit: Annotated[Path | None, opt.value("JUnit XML file for the gates.", metavar="FILE")] = None,
    ci: Annotated[
        bool | None, typer.Option("--ci", help="Give confidence intervals of pixel metrics too, by bootstrap.")
    ] = None,
    ci_level: Annotated[
        float | None, opt.value("Level of the confidence intervals.", default="0.95", metavar="SHARE")
    ] = None,
    ci_samples: Annotated[
        int | None, opt.value("Times the images are drawn again for them.", default="1000", metavar="N")
    ] = None,
    seed: opt.Seed = None,
    runs: opt.Runs = None,
    config: opt.Config = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Turn scores into one HTML page, PDF, slides or tables, compare several sets, gate CI."""
    call = Call(ctx)
    from adctl.config import ReportSettings
    from adctl.gates import exit_code
    from adctl.reporting.report import report as write

    formats = None if format is None else [part.strip() for part in format.split(",")]
    loaded = call.settings(ReportSettings, format=formats)
    if len(loaded.settings.scores) > 1:
        show_comparison(call, loaded)
        return
    result = write(loaded, call.reporter)
    call.finish(result, lambda: _text(result))
    raise typer.Exit(exit_code(result.gates))


def _text(result: ReportResult) -> RenderableType:
    from rich.console import Group

    files = [("report", str(file)) for file in result.files]
    files += [("contact sheet", str(result.contact_sheet))] if result.contact_sheet else []
    shown = [metrics_table(result.evaluation, files)]
    if result.gates:
        told = [("passed" if one.passed else "FAILED", one.gate, one.message) for one in result.gates]
        shown += ["", rows(told, "gate", "", "")]
    return Group(*shown)
