"""Tags and notes of runs, kept in the run's folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adctl.errors import UsageError
from adctl.tracking import folders, queries, record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from adctl.tracking.folders import Notes


def tag(runs: Path, name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> Notes:
    """Add tags to a run and remove tags from it.

    Raises:
        UsageError: There is no such run, a tag to remove is not there, or a tag holds a quote or a comma.
        OutputError: The folder of the run cannot be written.
    """
    folder, kept = _open(runs, name)
    if odd := [one for one in add if not one.strip() or any(mark in one for mark in '",')]:
        raise UsageError(f"'{odd[0]}' cannot be a tag.", "Use words without quotes and commas.")
    if gone := [one for one in remove if one not in kept.tags]:
        raise UsageError(
            f"The run {folder.name} has no tag '{gone[0]}'.", f"Its tags: {', '.join(kept.tags) or 'none'}."
        )
    tags = tuple(sorted({*kept.tags, *add} - set(remove)))
    return _write(folder, folders.Notes(tags, kept.note))


def write_note(runs: Path, name: str, text: str) -> Notes:
    """Write the note of a run; an empty text removes it.

    Raises:
        UsageError: There is no such run.
        OutputError: The folder of the run cannot be written.
    """
    folder, kept = _open(runs, name)
    return _write(folder, folders.Notes(kept.tags, text))


def _open(runs: Path, name: str) -> tuple[Path, Notes]:
    folder = queries.find_folder(runs, name)
    return folder, folders.read_run(folder).notes


def _write(folder: Path, notes: Notes) -> Notes:
    folders.write_notes(folder, notes)
    record.changed(folder)
    return notes
