"""Command `adctl runs note`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.cli.output import Call, rows
from adctl.errors import UsageError

if TYPE_CHECKING:
    from adctl.config import RunsNoteSettings


def run(call: Call[RunsNoteSettings]) -> None:
    """Write the note of a run."""
    from adctl.tracking import notes

    settings = call.settings
    if not settings.words:
        raise UsageError("No run was given.", "Name it, and the text: adctl runs note RUN TEXT")
    name, *text = settings.words
    result = notes.write_note(settings.runs, name, " ".join(text))
    call.finish(result, lambda: rows([("note", result.note or "none")]))
