"""`adctl bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adctl.cli import options as opt
from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.benchmarking import BenchResult


def bench(
    ctx: typer.Context,
    models: Annotated[
        list[Path] | None,
        typer.Argument(help="Model files, measured in turn; the last one when left out.", show_default=False),
    ] = None,
    batch_sizes: Annotated[
        str | None, opt.value("Batch sizes for throughput, with commas.", default="1,4,8", metavar="N,N")
    ] = None,
    repeats: Annotated[int | None, opt.value("Timed calls a batch size.", default="20", metavar="N")] = None,
    out: Annotated[Path | None, opt.value("JSON file for the figures.", metavar="FILE")] = None,
    device: opt.Device = None,
    gpu: opt.Gpu = None,
    runs: opt.Runs = None,
    config: opt.Config = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Measure latency and throughput of model files, interleaved so that drift cancels."""
    call = Call(ctx)
    from adctl.benchmarking import bench as measure
    from adctl.config import BenchSettings

    sizes = None if batch_sizes is None else [part.strip() for part in batch_sizes.split(",")]
    result = measure(call.settings(BenchSettings, batch_sizes=sizes), call.reporter)
    call.finish(result, lambda: _text(result))


def _text(result: BenchResult) -> RenderableType:
    lines = []
    for model in result.models:
        name = f"{model.path.parent.name}/{model.path.name}"
        latency = model.latency_ms
        lines.append(
            (
                name,
                "1",
                f"{latency.p50:.1f} / {latency.p95:.1f} / {latency.p99:.1f}",
                f"{1000 / latency.p50:.1f}",
            )
        )
        lines.extend(("", str(size), "", f"{rate:.1f}") for size, rate in model.throughput.items() if size != 1)
    return rows(lines, f"model ({result.device})", "batch", "latency ms p50 / p95 / p99", "images/s")
