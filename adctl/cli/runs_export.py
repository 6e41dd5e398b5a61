"""Command `adctl runs export`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from adctl.config import RunsExportSettings


def run(call: Call[RunsExportSettings]) -> None:
    """Write runs to a CSV or JSON file."""
    from adctl.tracking.export import export_runs

    settings = call.settings
    count = export_runs(settings.runs, settings.out, settings.where, overwrite=settings.overwrite)
    call.finish(
        {"path": settings.out, "runs": count}, lambda: rows([("runs", str(count)), ("file", str(settings.out))])
    )
