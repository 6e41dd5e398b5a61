"""Command `adctl runs tag`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows
from adctl.errors import UsageError

if TYPE_CHECKING:
    from adctl.config import RunsTagSettings


def run(call: Call[RunsTagSettings]) -> None:
    """Add tags to a run and remove tags from it."""
    from adctl.tracking import notes

    settings = call.settings
    if not settings.words:
        raise UsageError("No run was given.", "Name it, and its tags: adctl runs tag RUN TAG")
    name, *tags = settings.words
    result = notes.tag(settings.runs, name, add=tags, remove=settings.remove)
    call.finish(result, lambda: rows([("tags", ", ".join(result.tags) or "none")]))
