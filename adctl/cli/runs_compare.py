"""Command `adctl runs compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows
from adctl.cli.runs import as_json, shown, value_of
from adctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from adctl.config import RunsCompareSettings
    from adctl.tracking.queries import RunRow

_LEAST = 2
_ALWAYS_DIFFERENT = ("id", "name", "folder", "started", "finished", "model_sha256", "metrics", "settings")


def run(call: Call[RunsCompareSettings]) -> None:
    """Show the values in which runs differ."""
    from adctl.tracking import queries

    settings = call.settings
    if len(settings.names) < _LEAST:
        raise UsageError("A comparison needs two runs or more.", "Name them: adctl runs compare RUN RUN")
    found = [queries.find_run(settings.runs, name) for name in settings.names]
    call.finish([as_json(row) for row in found], lambda: _text(found))


def _text(found: Sequence[RunRow]) -> RenderableType:
    names = dict.fromkeys(
        name
        for row in found
        for name in (*row.values, *row.values["metrics"], *row.values["settings"])
        if name not in _ALWAYS_DIFFERENT
    )
    lines = [(name, *(shown(value_of(row, name)) for row in found)) for name in names]
    different = [line for line in lines if len(set(line[1:])) > 1]
    return rows(different, "", *(row.values["name"] for row in found)) if different else "The runs do not differ."
