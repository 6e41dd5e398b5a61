"""Command `adctl runs index`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows

if TYPE_CHECKING:
    from adctl.config import RunsIndexSettings


def run(call: Call[RunsIndexSettings]) -> None:
    """Rebuild the index of runs."""
    from adctl.tracking.index import rebuild

    result = rebuild(call.settings.runs, call.reporter)
    shown = [("database", result.database), ("runs", str(result.runs)), ("made from them", str(result.artifacts))]
    call.finish(result, lambda: rows([*shown, *(("problem", problem) for problem in result.problems)]))
