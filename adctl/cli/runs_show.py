"""Command `adctl runs show`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows
from adctl.cli.runs import as_json, shown, value_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.config import RunsShowSettings
    from adctl.tracking.queries import RunRow


def run(call: Call[RunsShowSettings]) -> None:
    """Show everything about one run."""
    from adctl.tracking import queries

    row = queries.find_run(call.settings.runs, call.settings.run)
    call.finish(as_json(row), lambda: _text(row))


def _text(row: RunRow) -> RenderableType:
    columns = [(name, shown(value_of(row, name))) for name in row.values if name not in ("metrics", "settings")]
    metrics = [(f"metric {name}", shown(value)) for name, value in row.values["metrics"].items()]
    settings = [(f"setting {name}", shown(value)) for name, value in row.values["settings"].items()]
    return rows([(name, value) for name, value in (*columns, *metrics, *settings) if value])
