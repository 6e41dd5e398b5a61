"""The index of run folders: runs that have changed since the last reader, or all of them anew."""

from __future__ import annotations

import hashlib
import logging
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, update

from adctl.errors import DataError
from adctl.names import storable
from adctl.progress import SILENT, Reporter
from adctl.run_folder import encode_id
from adctl.tracking import changes, database, folders, is_missing
from adctl.tracking.schema import ARTIFACTS, RUNS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def refresh(runs: Path) -> None:
    """Bring the entries of all runs up to date that have changed since the last call; damaged ones are warned of.

    If there is no database file yet, or no longer, all folders are read.

    Raises:
        AdctlError: The database cannot be written.
    """
    if is_missing(runs):
        for problem in rebuild(runs).problems:
            log.warning("%s", problem)
        return
    with changes.taken(runs) as marked:
        present = list(filter(folders.is_run, marked))
        if not present:
            return
        with database.transaction(runs) as connection:
            for folder in present:  # read now, when no other process writes: what it wrote may be newer
                try:
                    _update(connection, folders.read_run(folder))
                except (DataError, OSError) as error:
                    log.warning("%s", error.message if isinstance(error, DataError) else error)


def rebuild(runs: Path, reporter: Reporter = SILENT) -> IndexResult:
    """Read all run folders and write the index anew, in one transaction.

    Args:
        runs: Folder of the runs.
        reporter: Receiver of progress.

    Raises:
        AdctlError: The database cannot be written.
    """
    with changes.taken(runs), database.transaction(runs) as connection:
        found, problems = _read_all(runs, reporter)
        _replace_all(connection, runs, found)
    return IndexResult(database.where(runs), len(found), sum(len(run.artifacts) for run in found), tuple(problems))


@contextmanager
def in_memory(runs: Path) -> Iterator[tuple[Connection, list[str]]]:
    """Yield a connection to an index of all run folders that lies in memory, and the reasons why some are missing."""
    found, problems = _read_all(runs, SILENT)
    with database.temporary() as connection:
        _replace_all(connection, runs, found)
        yield connection, problems


def _replace_all(connection: Connection, runs: Path, found: Sequence[folders.Run]) -> None:
    """Write the runs of a folder anew; those of other folders in the same database stay."""
    prefix = storable(str(runs.absolute())) + "/"
    for folder in connection.execute(select(RUNS.c.folder)).scalars().all():
        if folder.startswith(prefix):
            _remove(connection, folder)
    for start in range(0, len(found), _AT_ONCE):
        _insert(connection, found[start : start + _AT_ONCE])


def dump(runs: Path) -> list[dict[str, Any]]:
    """Return all entries of the index, in the order of their identifiers."""
    refresh(runs)
    with database.snapshot(runs) as connection:
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


def _update(connection: Connection, run: folders.Run) -> None:
    """Write what has changed of a run and of the things made from it."""
    same_id = select(RUNS.c.folder).where(RUNS.c.id == run.id, RUNS.c.folder != str(run.folder))
    if connection.execute(same_id).first():
        run = replace(run, id=_copy_id(run))
    stored = connection.execute(select(RUNS).where(RUNS.c.folder == str(run.folder))).mappings().first()
    if stored is None or stored["id"] != run.id:
        _remove(connection, str(run.folder))
        _insert(connection, [run])
        return
    changed = {name: value for name, value in folders.to_row(run).items() if stored[name] != value}
    if changed:
        connection.execute(update(RUNS).where(RUNS.c.id == run.id).values(changed))
    known = set(connection.execute(select(ARTIFACTS.c.id).where(ARTIFACTS.c.run == run.id)).scalars())
    gone = known - {one.id for one in run.artifacts}
    if gone:
        connection.execute(delete(ARTIFACTS).where(ARTIFACTS.c.run == run.id, ARTIFACTS.c.id.in_(gone)))
    _insert_artifacts(connection, {run.id: [one for one in run.artifacts if one.id not in known]})


def _copy_id(run: folders.Run) -> str:
    digest = hashlib.sha256(f"{run.id} {run.folder}".encode(errors="surrogateescape")).digest()
    return encode_id(0, digest[:10])


def _insert(connection: Connection, runs: Sequence[folders.Run]) -> None:
    connection.execute(insert(RUNS), [folders.to_row(run) for run in runs])
    _insert_artifacts(connection, {run.id: run.artifacts for run in runs})


def _insert_artifacts(connection: Connection, artifacts: Mapping[str, Iterable[folders.Artifact]]) -> None:
    """Insert things made from runs, by the identifiers of the runs."""
    rows = [{**asdict(one), "run": run} for run, several in artifacts.items() for one in several]
    if rows:
        connection.execute(insert(ARTIFACTS), rows)


def _remove(connection: Connection, folder: str) -> None:
    ids = select(RUNS.c.id).where(RUNS.c.folder == folder)
    connection.execute(delete(ARTIFACTS).where(ARTIFACTS.c.run.in_(ids)))
    connection.execute(delete(RUNS).where(RUNS.c.folder == folder))
