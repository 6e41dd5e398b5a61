"""Reading of the index: a SQLite file by Python's own driver, so that SQLAlchemy need not be imported.

Whatever that driver cannot do, such as reading tables of an older version, goes the usual way through SQLAlchemy.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from adctl.errors import AdctlError
from adctl.names import storable
from adctl.tracking import DATABASE_FILE, SERVER_VARIABLE, TABLES_VERSION, changes, is_missing
from adctl.tracking.conditions import DOCUMENTS, Dialect

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

log = logging.getLogger(__name__)

_WAIT_SECONDS = 60


def dialect() -> Dialect:
    """Return the dialect of the database."""
    return Dialect(server=SERVER_VARIABLE in os.environ)


def read(runs: Path, question: str, values: Sequence[str | float] = ()) -> list[dict[str, Any]]:
    """Return the rows of a question, from an index that is up to date if it can be written.

    In a folder that cannot be written, an index that is missing or out of date is made anew in memory.

    Raises:
        AdctlError: The database cannot be opened or read.
    """
    stored = [storable(value) if isinstance(value, str) else value for value in values]
    if _is_read_only(runs) and (changes.exist(runs) or not _is_usable(runs)):
        return [_parsed(row) for row in _rows_in_memory(runs, question, stored)]
    problem = _refresh(runs)
    found = [_parsed(row) for row in _rows(runs, question, stored)]
    if problem:  # such as a full disk, which does not hide what the index holds
        log.warning("The index of runs is not up to date. %s", problem)
    return found


def _refresh(runs: Path) -> str:
    """Bring the index up to date if runs have changed; return why that is not possible, otherwise nothing."""
    if not changes.exist(runs) and not is_missing(runs):
        return ""
    from adctl.tracking import index

    try:
        index.refresh(runs)
    except AdctlError as error:
        return error.message
    return ""


def _is_read_only(runs: Path) -> bool:
    """Return whether runs are indexed by a file that cannot be written."""
    return SERVER_VARIABLE not in os.environ and runs.is_dir() and not os.access(runs, os.W_OK)


def _is_usable(runs: Path) -> bool:
    """Return whether the file of the index can be read as it is."""
    try:
        _sqlite_rows(runs / DATABASE_FILE, "SELECT 1", ())
    except sqlite3.Error:
        return False
    return True


def _rows_in_memory(runs: Path, question: str, values: Sequence[str | float]) -> list[Mapping[str, Any]]:
    from adctl.tracking import index

    with index.in_memory(runs) as (connection, problems):
        for problem in (f"{runs} cannot be written, so each command reads the folders of its runs anew.", *problems):
            if problem not in _said:
                _said.add(problem)
                log.warning("%s", problem)
        return [dict(row) for row in connection.exec_driver_sql(question, tuple(values)).mappings()]


_said: set[str] = set()


def _rows(runs: Path, question: str, values: Sequence[str | float]) -> list[Mapping[str, Any]]:
    if SERVER_VARIABLE not in os.environ:
        try:
            return _sqlite_rows(runs / DATABASE_FILE, question, values)
        except sqlite3.Error as error:
            log.debug("Reading %s through SQLAlchemy: %s.", runs / DATABASE_FILE, error)
    from adctl.tracking import database

    with database.snapshot(runs) as connection:
        return [dict(row) for row in connection.exec_driver_sql(question, tuple(values)).mappings()]


def _sqlite_rows(path: Path, question: str, values: Sequence[str | float]) -> list[Mapping[str, Any]]:
    """Return the rows of a file that exists and has the tables of this version.

    In a folder that cannot be written, SQLite opens a file only as one that nobody changes.
    """
    mode = "mode=rw" if os.access(path.parent, os.W_OK) else "immutable=1"
    address = f"file:{quote(os.fsencode(path.absolute()))}?{mode}"
    with closing(sqlite3.connect(address, uri=True, timeout=_WAIT_SECONDS)) as connection:
        connection.row_factory = sqlite3.Row
        version = connection.execute("SELECT version_num FROM adctl_version").fetchone()
        if version is None or version[0] != TABLES_VERSION:
            raise sqlite3.DatabaseError("it has other tables")
        return [dict(row) for row in connection.execute(question, values)]


def _parsed(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its documents as values; the driver of PostgreSQL has parsed them already."""
    is_text = {name: name in DOCUMENTS and isinstance(value, str) for name, value in row.items()}
    return {name: json.loads(value) if is_text[name] else value for name, value in row.items()}
