"""Command `adctl serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows
from adctl.cli.sinks_text import describe_sink

if TYPE_CHECKING:
    from adctl.config import ServeSettings


def run(call: Call[ServeSettings]) -> None:
    """Serve until stopped, then show what was done."""
    from adctl.serve.server import run_server

    result = run_server(call.settings)
    counted = ", ".join(f"{count} {verdict}" for verdict, count in result.counts.items() if count) or "none"
    shown = [("address", result.address), ("models", ", ".join(result.models)), ("verdicts", counted)]
    if result.missing:
        shown.append(("missing", f"{result.missing} verdicts are not in the history"))
    shown += [(status.name, describe_sink(status)) for status in result.sinks]
    call.finish(result, lambda: rows(shown))
