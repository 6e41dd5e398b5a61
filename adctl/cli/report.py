"""`adctl report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adctl.cli import options as opt
from adctl.cli.comparison import show_comparison
from adctl.cli.metrics import metrics_table
from adctl.cli.output import Call

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.reporting import ReportResult


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
    ci: Annotated[bool | None, typer.Option("--ci", help="Give confidence intervals, by bootstrap.")] = None,
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
    """Turn scores into one HTML page: metrics, curves, threshold and a gallery; several sets are compared."""
    call = Call(ctx)
    from adctl.config import ReportSettings
    from adctl.reporting import report as write

    loaded = call.settings(ReportSettings)
    if len(loaded.settings.scores) > 1:
        show_comparison(call, loaded)
        return
    result = write(loaded, call.reporter)
    call.finish(result, lambda: _text(result))


def _text(result: ReportResult) -> RenderableType:
    return metrics_table(result.evaluation, [("report", str(result.page))])
