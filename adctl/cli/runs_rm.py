"""Command `adctl runs rm`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows
from adctl.cli.runs_prune import confirm
from adctl.errors import UsageError

if TYPE_CHECKING:
    from adctl.config import RunsRmSettings


def run(call: Call[RunsRmSettings]) -> None:
    """Remove runs after asking."""
    from adctl.tracking import queries
    from adctl.tracking.prune import reason_to_stay, remove

    settings = call.settings
    if not settings.names:
        raise UsageError("No run was given.", "Name it: adctl runs rm RUN")
    found = [queries.find_run(settings.runs, name) for name in settings.names]
    if not settings.yes:
        for row in found:
            if reason := reason_to_stay(row):
                raise UsageError(f"The run {row.values['name']} is {reason}.", "Add --yes to remove it nevertheless.")
        confirm(f"Remove {', '.join(row.values['name'] for row in found)}?")
    for row in found:
        remove(settings.runs, row)
    names = [row.values["name"] for row in found]
    call.finish({"removed": names}, lambda: rows([("removed", name) for name in names]))
