"""`adctl demo`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from adctl.cli import options as opt
from adctl.cli.metrics import metrics_table
from adctl.cli.output import Call

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.demonstration import DemoResult


def demo(
    ctx: typer.Context,
    arch: opt.Arch = None,
    epochs: Annotated[int | None, opt.value("Epochs of gradient training.", default="5", metavar="N")] = None,
    seed: opt.Seed = None,
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
    """Show everything on generated zippers: fetch, train, calibrate, score, report."""
    call = Call(ctx)
    from adctl.config import DemoSettings
    from adctl.demonstration import demo as run_demo

    result = run_demo(call.settings(DemoSettings), call.reporter)
    call.finish(result, lambda: _text(result))


def _text(result: DemoResult) -> RenderableType:
    lines = [
        ("model", str(result.model)),
        ("heatmaps", str(result.heatmaps)),
        ("report", str(result.page)),
        ("took", f"{result.seconds:.0f} s"),
    ]
    return metrics_table(result.evaluation, lines)
