"""`adctl bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adctl.choices import RUNTIMES
from adctl.cli import options as opt
from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.benchmarking.bench import Benchmark


def bench(
    ctx: typer.Context,
    models: Annotated[
        list[Path] | None,
        typer.Argument(help="Model files, measured in turn; the last one when left out.", show_default=False),
    ] = None,
    runtime: Annotated[
        str | None,
        opt.value(
            f"Runtimes with commas, each measured with each model: auto, {', '.join(RUNTIMES)}; each file's own when "
            "left out.",
            metavar="NAME,NAME",
        ),
    ] = None,
    batch_sizes: Annotated[
        str | None, opt.value("Batch sizes for throughput, with commas.", default="1,4,8", metavar="N,N")
    ] = None,
    repeats: Annotated[
        int | None,
        opt.value("Rounds, each with one call a batch size and five of single images.", default="30", metavar="N"),
    ] = None,
    images: Annotated[
        list[str] | None,
        opt.value("Folder, file or glob to score from disk; the model's own test images when left out.", metavar="DIR"),
    ] = None,
    cold_starts: Annotated[
        int | None, opt.value("Processes started for cold start and memory.", default="3", metavar="N")
    ] = None,
    out: Annotated[Path | None, opt.value("JSON file for the figures.", metavar="FILE")] = None,
    against: Annotated[
        Path | None, opt.value("Earlier JSON file: exit with 3 when slower beyond the noise.", metavar="FILE")
    ] = None,
    fail_if: Annotated[
        list[str] | None, opt.value("Exit with 3 when it holds, as 'p95_ms>50'; may be repeated.", metavar="CONDITION")
    ] = None,
    junit: Annotated[Path | None, opt.value("JUnit XML file for the gates.", metavar="FILE")] = None,
    markdown: Annotated[Path | None, opt.value("Markdown file for figures and gates.", metavar="FILE")] = None,
    plot: Annotated[Path | None, opt.value("PNG file with the figures drawn.", metavar="FILE")] = None,
    device: opt.Device = None,
    gpu: opt.Gpu = None,
    workers: opt.Workers = None,
    runs: opt.Runs = None,
    config: opt.Config = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Measure speed and memory of model files, interleaved so that drift cancels; gates for CI."""
    call = Call(ctx)
    from adctl.benchmarking.bench import bench as measure
    from adctl.config import BenchSettings
    from adctl.gates import exit_code

    sizes = None if batch_sizes is None else [part.strip() for part in batch_sizes.split(",")]
    runtimes = None if runtime is None else [part.strip() for part in runtime.split(",")]
    result = measure(call.settings(BenchSettings, batch_sizes=sizes, runtime=runtimes), call.reporter)
    call.finish({**result.results.to_dict(), "gates": result.gates}, lambda: _text(result))
    raise typer.Exit(exit_code(result.gates))


def _text(result: Benchmark) -> RenderableType:
    from rich.console import Group

    from adctl.benchmarking.tables import machine_text, table_rows

    (_, *headers), *lines = table_rows(result.results)
    shown = [rows([*lines, ("machine", machine_text(result.results))], "figure", *headers)]
    if result.gates:
        told = [("passed" if one.passed else "FAILED", one.gate, one.subject, one.message) for one in result.gates]
        shown += ["", rows(told, "gate", "", "model", "")]
    return Group(*shown)
