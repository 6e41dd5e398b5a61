"""Command `adctl demo`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.metrics_text import metrics_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.cli.output import Call
    from adctl.config import DemoSettings
    from adctl.demonstration import DemoResult


def run(call: Call[DemoSettings]) -> None:
    """Run the whole workflow on generated images."""
    from adctl.demonstration import demo

    result = demo(call.loaded, call.reporter)
    call.finish(result, lambda: _text(result))


def _text(result: DemoResult) -> RenderableType:
    lines = [
        ("model", str(result.model)),
        ("heatmaps", str(result.heatmaps)),
        ("report", str(result.page)),
        ("took", f"{result.seconds:.0f} s"),
    ]
    return metrics_table(result.evaluation, lines)
