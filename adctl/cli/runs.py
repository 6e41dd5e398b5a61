"""Command `adctl runs`: the list of runs, and what its subcommands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from adctl.config import RunsListBaseSettings
    from adctl.tracking.queries import RunRow

_EMPTY = "No runs were found."


def run(call: Call[RunsListBaseSettings]) -> None:
    """List the runs that meet the conditions."""
    from adctl.tracking import queries

    settings = call.settings
    found = queries.find_runs(settings.runs, settings.where, settings.sort, settings.limit)
    call.finish([as_json(row) for row in found], lambda: _table(found, settings.columns))


def as_json(row: RunRow) -> dict[str, Any]:
    """Return a run for JSON output."""
    return {**row.values, "state": row.state}


def shown(value: Any) -> str:
    """Return a value as text for a table."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def value_of(row: RunRow, name: str) -> Any:
    """Return a column, metric or setting of a run; its state as it is now."""
    return row.state if name == "state" else row.get(name)


def _table(found: Sequence[RunRow], wanted: Sequence[str]) -> RenderableType:
    from adctl.tracking.queries import COLUMNS

    if not found:
        return _EMPTY
    known = dict.fromkeys(name for row in found for name in row.values["metrics"])
    metrics = [name for name in known if name not in (*found[0].values, "unscored")]  # numbers of images
    names = wanted or (*COLUMNS, *metrics[:_SHOWN_METRICS])
    return rows([[shown(value_of(row, name)) for name in names] for row in found], *names)


_SHOWN_METRICS = 4
