"""`adctl export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adctl.choices import EXPORT_FORMATS, formats_with
from adctl.cli import options as opt
from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.exporting.export import Exported, ExportResult

_HALF, _INT8 = (", ".join(formats_with(precision)) for precision in ("fp16", "int8"))


def export(
    ctx: typer.Context,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Images to verify on; those held out at training and the test images when left out."),
    ] = None,
    model: opt.Model = None,
    format: Annotated[  # noqa: A002 - the flag's name
        str | None,
        opt.value(f"Formats, with commas: {', '.join(EXPORT_FORMATS)}.", default="onnx", metavar="NAME,NAME"),
    ] = None,
    half: Annotated[
        bool | None,
        typer.Option("--half", help=f"Store weights in half precision ({_HALF})."),
    ] = None,
    int8: Annotated[
        bool | None,
        typer.Option("--int8", help=f"Quantise the network to eight bits ({_INT8})."),
    ] = None,
    calibration: Annotated[
        list[str] | None,
        opt.value(
            "Good images for --int8 to find ranges on; those the model learned from when left out.", metavar="DIR"
        ),
    ] = None,
    out: Annotated[
        Path | None, opt.value("File, or folder, for what is exported; beside the model when left out.", metavar="PATH")
    ] = None,
    tolerance: Annotated[
        float | None,
        opt.value(
            "Largest relative difference of scores; 0.001, 0.01 with --half and 0.25 with --int8 when left out.",
            metavar="X",
        ),
    ] = None,
    runs: opt.Runs = None,
    config: opt.Config = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Write the model for another runtime, and prove on images that it scores the same."""
    call = Call(ctx)
    from adctl.config import ExportSettings
    from adctl.exporting.export import export as export_model

    formats = None if format is None else [part.strip() for part in format.split(",")]
    result = export_model(call.settings(ExportSettings, format=formats), call.reporter)
    call.finish(result, lambda: _text(result))


def _text(result: ExportResult) -> RenderableType:
    columns = [dict(_column(one)) for one in result.exports]
    lines = [(name, *(column[name] for column in columns)) for name in columns[0]]
    return rows([*lines, ("next", f"adctl score --model {result.exports[0].file}", *[""] * (len(columns) - 1))])


def _column(made: Exported) -> list[tuple[str, str]]:
    check = made.check
    rank = "unknown" if check.rank_correlation is None else f"{check.rank_correlation:.6f}"
    auroc = "no labelled images"
    if check.auroc is not None and check.auroc_change is not None:
        auroc = f"{check.auroc_change:+.4f} from {check.auroc:.4f}"
    return [
        ("exported", str(made.file)),
        ("precision, size", f"{made.precision}, {made.bytes / 1e6:.1f} MB"),
        ("verified on", f"{check.images} images, from their files"),
        ("score difference, max / mean", f"{check.max_score_difference:.2e} / {check.mean_score_difference:.2e}"),
        ("map difference, max / mean", f"{check.max_map_difference:.2e} / {check.mean_map_difference:.2e}"),
        ("rank correlation", rank),
        ("changed verdicts", str(check.changed_verdicts)),
        ("AUROC change", auroc),
        ("speed", f"{made.images_per_second:.1f} images/s; torch {made.torch_images_per_second:.1f}"),
    ]
