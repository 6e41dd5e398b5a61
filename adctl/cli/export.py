"""`adctl export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adctl.cli import options as opt
from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.exporting.verified import ExportResult


def export(
    ctx: typer.Context,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Images to verify the export on; those held out at training when left out."),
    ] = None,
    model: opt.Model = None,
    format: Annotated[str | None, opt.value("Format: onnx.", default="onnx")] = None,  # noqa: A002 - the flag's name
    out: Annotated[Path | None, opt.value("Where the exported file goes.", metavar="FILE")] = None,
    tolerance: Annotated[
        float | None,
        opt.value("Largest relative difference of scores allowed.", default="0.001", metavar="X"),
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
    from adctl.exporting.verified import export as export_model

    result = export_model(call.settings(ExportSettings), call.reporter)
    call.finish(result, lambda: _text(result))


def _text(result: ExportResult) -> RenderableType:
    check = result.check
    return rows(
        [
            ("exported", f"{result.exported} ({result.exported.stat().st_size / 1e6:.1f} MB)"),
            ("verified on", f"{check.images} images, from their files"),
            (
                "score difference",
                f"at most {check.max_score_difference:.2e} of the score, mean {check.mean_score_difference:.2e}",
            ),
            ("map difference", f"at most {check.max_map_difference:.2e} of the map's range"),
            ("changed verdicts", str(check.changed_verdicts)),
        ]
    )
