"""The index of run folders: one run at a time after each command, or all of them anew."""

from __future__ import annotations

import hashlib
import logging
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select

from adctl.errors import AdctlError, DataError
from adctl.progress import SILENT, Reporter
from adctl.run_folder import encode_id
from adctl.tracking import database, folders
from adctl.tracking.schema import ARTIFACTS, RUNS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sqlalchemy import Connection

log = logging.getLogger(__name__)

_AT_ONCE = 500


@dataclass(frozen=True)
class IndexResult:
    """Result of rebuilding the index.

    Attributes:
        database: Place of the database.
        runs: Number of runs.
        artifacts: Number of things made from them.
        problems: Folders that could not be read, with reasons.
    """

    database: str
    runs: int
    artifacts: int
    problems: tuple[str, ...]


def index_run(runs: Path, folder: Path) -> None:
    """Bring the entries of one run up to date.

    Raises:
        AdctlError: The folder is damaged, or the database cannot be written.
    """
    run = folders.read_run(folder)
    with database.transaction(runs) as connection:
        _remove(connection, str(run.folder))
        _insert(connection, [_with_own_id(connection, run)])


@contextmanager
def warned(folder: Path) -> Iterator[None]:
    """Turn an error of tracking into a warning, because the work itself is done."""
    try:
        yield
    except (AdctlError, OSError, ImportError) as error:
        reason = error.message if isinstance(error, AdctlError) else str(error)
        log.warning("The run %s is complete, but the run database does not know: %s", folder.name, reason)


def rebuild(runs: Path, reporter: Reporter = SILENT) -> IndexResult:
    """Read all run folders and write the index anew, in one transaction.

    Args:
        runs: Folder of the runs.
        reporter: Receiver of progress.

    Raises:
        AdctlError: The database cannot be written.
    """
    found, problems = _read_all(runs, reporter)
    with database.transaction(runs) as connection:
        prefix = str(runs.absolute()) + "/"
        for folder in connection.execute(select(RUNS.c.folder)).scalars().all():
            if folder.startswith(prefix):
                _remove(connection, folder)
        for start in range(0, len(found), _AT_ONCE):
            _insert(connection, found[start : start + _AT_ONCE])
    return IndexResult(database.where(runs), len(found), sum(len(run.artifacts) for run in found), tuple(problems))


def dump(runs: Path) -> list[dict[str, Any]]:
    """Return all entries of the index, in the order of their identifiers."""
    with database.transaction(runs) as connection:
        tables = (RUNS, ARTIFACTS)
        return [dict(row) for table in tables for row in connection.execute(select(table).order_by("id")).mappings()]


def _read_all(runs: Path, reporter: Reporter) -> tuple[list[folders.Run], list[str]]:
    found: dict[str, folders.Run] = {}
    problems = []
    with reporter.stage("reading run folders") as advance:
        for number, folder in enumerate(folders.run_folders(runs), 1):
            try:
                run = folders.read_run(folder)
            except (DataError, OSError) as error:
                problems.append(error.message if isinstance(error, DataError) else str(error))
                continue
            if run.id in found:
                problems.append(f"{folder} has the same id as {found[run.id].folder}: it is a copy.")
                run = replace(run, id=_copy_id(run))
            found[run.id] = run
            advance(number, None)
    return list(found.values()), problems


def _with_own_id(connection: Connection, run: folders.Run) -> folders.Run:
    """Return the run, with another identifier if a run in another folder has the same one."""
    taken = connection.execute(select(RUNS.c.id).where(RUNS.c.id == run.id)).first()
    return replace(run, id=_copy_id(run)) if taken else run


def _copy_id(run: folders.Run) -> str:
    digest = hashlib.sha256(f"{run.id} {run.folder}".encode(errors="surrogateescape")).digest()
    return encode_id(0, digest[:10])


def _insert(connection: Connection, runs: Sequence[folders.Run]) -> None:
    connection.execute(insert(RUNS), [folders.to_row(run) for run in runs])
    rows = [{**asdict(one), "run": run.id} for run in runs for one in run.artifacts]
    if rows:
        connection.execute(insert(ARTIFACTS), rows)


def _remove(connection: Connection, folder: str) -> None:
    ids = select(RUNS.c.id).where(RUNS.c.folder == folder)
    connection.execute(delete(ARTIFACTS).where(ARTIFACTS.c.run.in_(ids)))
    connection.execute(delete(RUNS).where(RUNS.c.folder == folder))
