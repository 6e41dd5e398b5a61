"""Command `adctl runs accept`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows
from adctl.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from adctl.config import RunsAcceptSettings
    from adctl.tracking.versions import AcceptedVersion


def run(call: Call[RunsAcceptSettings]) -> None:
    """Let a name mean a run."""
    from adctl.tracking.versions import accept

    settings = call.settings
    if settings.run is None:
        raise UsageError("No run was given.", "Name it: adctl runs accept RUN")
    result = accept(settings.runs, settings.run, settings.name)
    call.finish(result, lambda: version_text(result))


def version_text(version: AcceptedVersion) -> RenderableType:
    """Return the run that a name means, and how to go back."""
    back = f"adctl runs rollback {version.name}" if version.previous else "none before"
    return rows([(version.name, f"means {version.run}"), ("back to", f"{version.previous or '-'}: {back}")])
