"""Command `adctl demo line`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows
from adctl.cli.sinks_text import describe_sink

if TYPE_CHECKING:
    from adctl.config import DemoLineSettings


def run(call: Call[DemoLineSettings]) -> None:
    """Run a line of generated parts until stopped, then show what was found."""
    from adctl.line_demonstration import demo_line

    result = demo_line(call.loaded, call.reporter)
    good = result.judged - result.defective
    lines = [
        ("model", str(result.model)),
        ("parts", f"{result.parts} in {result.seconds:.0f} s, {result.judged} with a verdict"),
        ("defects", f"{result.found} of {result.defective} rejected"),
        ("false alarms", f"{result.false_alarms} of {good} good parts"),
        *((status.name, describe_sink(status)) for status in result.sinks),
        ("files", str(result.folder)),
    ]
    call.finish(result, lambda: rows(lines))
