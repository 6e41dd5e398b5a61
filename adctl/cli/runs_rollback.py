"""Command `adctl runs rollback`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.runs_accept import version_text
from adctl.errors import UsageError

if TYPE_CHECKING:
    from adctl.cli.output import Call
    from adctl.config import RunsRollbackSettings


def run(call: Call[RunsRollbackSettings]) -> None:
    """Let a name mean the run before."""
    from adctl.tracking.versions import roll_back

    settings = call.settings
    if settings.name is None:
        raise UsageError("No name was given.", "Give it: adctl runs rollback NAME")
    result = roll_back(settings.runs, settings.name)
    call.finish(result, lambda: version_text(result))
