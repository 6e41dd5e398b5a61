"""Command `adctl runs rm`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows
from adctl.cli.runs_prune import confirm, left_lines
from adctl.errors import UsageError

if TYPE_CHECKING:
    from adctl.config import RunsRmSettings
    from adctl.schemas import RemovedRuns


def run(call: Call[RunsRmSettings]) -> None:
    """Remove runs after asking."""
    from adctl.tracking import queries
    from adctl.tracking.own_files import foreign_files
    from adctl.tracking.prune import reason_to_stay, remove

    settings = call.settings
    if not settings.names:
        raise UsageError("No run was given.", "Name it: adctl runs rm RUN")
    found = [queries.find_run(settings.runs, name) for name in settings.names]
    if not settings.yes:
        for row in found:
            if reason := reason_to_stay(row):
                raise UsageError(f"The run {row.values['name']} is {reason}.", "Add --yes to remove it nevertheless.")
        stays = {row.values["name"]: foreign_files(row.folder) for row in found}
        confirm(f"Remove {', '.join(stays)}?", {name: paths for name, paths in stays.items() if paths})
    result: RemovedRuns = {"removed": [], "left": {}}
    for row in found:
        result["removed"].append(row.values["name"])
        if left := remove(settings.runs, row):
            result["left"][row.values["name"]] = [str(row.folder / path) for path in left]
    lines = [("removed", name, "") for name in result["removed"]] + left_lines(result["left"])
    call.finish(result, lambda: rows(lines))
