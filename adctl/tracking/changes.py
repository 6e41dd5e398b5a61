"""Marks of runs that have changed since they were indexed, so that commands need not open the database.

runs/.changed/DIGEST   path of the run's folder, relative to the folder of runs

A command that changes a run leaves a mark after its files are written. The next reader of the index takes the marks,
reads these runs, and removes the marks when the database has them.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from adctl import files, run_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDER = ".changed"

_TAKEN = ".taken"


def add(runs: Path, folder: Path) -> None:
    """Mark a run as changed; its files are already written.

    Raises:
        OutputError: The mark cannot be written.
    """
    place = os.fsencode(os.path.relpath(folder, runs))
    mark = runs / FOLDER / hashlib.sha256(place).hexdigest()[:16]
    if not mark.exists():  # otherwise it has not been taken, and whoever takes it reads the run after that
        files.write_bytes(mark, place)


def exist(runs: Path) -> bool:
    """Return whether there are marks."""
    folder = runs / FOLDER
    return folder.is_dir() and any(not mark.name.startswith(".") for mark in folder.iterdir())


@contextmanager
def taken(runs: Path) -> Iterator[list[Path]]:
    """Take all marks and yield the folders of the runs; the marks are removed if the block raises nothing.

    Raises:
        OutputError: The marks cannot be renamed.
    """
    with files.output_errors(runs / FOLDER):
        marks = list(_take(runs / FOLDER))
    places: set[str] = set()
    for mark in marks:
        with suppress(FileNotFoundError):  # another reader has it in the database by now
            places.add(os.fsdecode(mark.read_bytes()))
    yield [runs / place for place in sorted(places)]
    with files.output_errors(runs / FOLDER):
        for mark in marks:
            mark.unlink(missing_ok=True)


def _take(folder: Path) -> Iterator[Path]:
    """Rename the marks, so that later changes leave new ones; yield also those of a reader that was killed."""
    for mark in list(folder.iterdir()) if folder.is_dir() else ():
        if mark.name.startswith("."):  # not yet complete
            continue
        if mark.name.endswith(_TAKEN):
            yield mark
            continue
        with suppress(FileNotFoundError):  # another reader has taken it
            yield mark.rename(folder / f"{mark.name}.{run_folder.new_id()}{_TAKEN}")
