"""Connections to the run database: SQLite beside the runs, or the server that `ADCTL_DATABASE_URL` names."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event, insert, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from adctl import files
from adctl.errors import AdctlError, DataError, UsageError
from adctl.tracking import DATABASE_FILE as FILE
from adctl.tracking import SERVER_VARIABLE as VARIABLE
from adctl.tracking import TABLES_VERSION as VERSION
from adctl.tracking.schema import METADATA, VERSIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

_WAIT_SECONDS = 60
_SHORT_WAIT_SECONDS = 5
_READS = "adctl_reads"
"""Execution option of connections that only read."""
_MIGRATION_LOCK, _WRITE_LOCK = 7_236_480_201, 7_236_480_202
"""Numbers of PostgreSQL's advisory locks; any numbers that no other program uses."""


@contextmanager
def transaction(runs: Path) -> Iterator[Connection]:
    """Open a transaction that writes; it is committed at the end, or undone if an error is raised.

    Raises:
        AdctlError: The database cannot be opened or written.
    """
    with _errors(runs):
        engine = _engine(str(runs.absolute()), os.environ.get(VARIABLE))
        _migrate(engine, runs)
        with engine.begin() as connection:
            _wait_for_writers(connection, _WRITE_LOCK)
            yield connection


@contextmanager
def snapshot(runs: Path) -> Iterator[Connection]:
    """Open a transaction that only reads: it neither waits for writers nor makes them wait.

    Raises:
        AdctlError: The database cannot be opened or read.
    """
    with _errors(runs):
        engine = _engine(str(runs.absolute()), os.environ.get(VARIABLE))
        _migrate(engine, runs)
        with _reading(engine) as connection:
            yield connection


@cache
def durable_engine(runs: str, url: str | None) -> Engine:
    """Return an engine whose commits are on the disk when they return, for what cannot be rebuilt from folders.

    Args:
        runs: Absolute path of the folder of runs.
        url: Value of `ADCTL_DATABASE_URL`.
    """
    if url is not None:
        return _engine(runs, url)
    files.make_folder(Path(runs))
    return _sqlite(Path(runs) / FILE, synchronous="FULL", wait=_SHORT_WAIT_SECONDS)


@contextmanager
def durable_transaction(runs: Path, *, reads: bool = False) -> Iterator[Connection]:
    """Open a transaction of `durable_engine`; it waits only seconds for other writers.

    Args:
        runs: Folder of runs.
        reads: Only read, which waits for no writer.

    Raises:
        AdctlError: The database cannot be opened or written.
    """
    with _errors(runs):
        engine = durable_engine(str(runs.absolute()), os.environ.get(VARIABLE))
        _migrate(engine, runs)
        with _reading(engine) if reads else engine.begin() as connection:
            yield connection


@contextmanager
def kept_transaction(runs: Path) -> Iterator[Connection]:
    """Open a transaction for what may be lost in a power failure, though not when the process is killed.

    It does not wait for the disk. On a database server it is durable.

    Raises:
        AdctlError: The database cannot be opened or written.
    """
    with _errors(runs):
        url = os.environ.get(VARIABLE)
        engine = _kept_engine(str(runs.absolute())) if url is None else _engine(str(runs.absolute()), url)
        _migrate(engine, runs)
        with engine.begin() as connection:
            yield connection


@cache
def _kept_engine(runs: str) -> Engine:
    files.make_folder(Path(runs))
    return _sqlite(Path(runs) / FILE, wait=_SHORT_WAIT_SECONDS)


@contextmanager
def temporary() -> Iterator[Connection]:
    """Open empty tables in memory, which are gone at the end."""
    with create_engine("sqlite://").begin() as connection:
        _create(connection)
        yield connection


def address(runs: Path) -> str:
    """Return the address of the database for SQLAlchemy."""
    return _engine(str(runs.absolute()), os.environ.get(VARIABLE)).url.render_as_string(hide_password=False)


@cache
def _engine(runs: str, url: str | None) -> Engine:
    if url is None:
        files.make_folder(Path(runs))
        return _sqlite(Path(runs) / FILE)
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        return create_engine(parsed, pool_pre_ping=True, connect_args={"connect_timeout": 10})
    except (ArgumentError, NoSuchModuleError) as error:
        raise UsageError(
            f"{VARIABLE} is not the address of a database that adctl knows.",
            "Write it as postgresql://user@host/database, or unset it to use SQLite.",
        ) from error
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed.", "Install it: pip install 'adctl[postgresql]'") from error


def _sqlite(path: Path, synchronous: str = "NORMAL", wait: float = _WAIT_SECONDS) -> Engine:
    engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": wait})

    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin below, not at the driver's own discretion
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("PRAGMA foreign_keys=ON")

    event.listen(engine, "connect", configure)
    # A transaction that reads first and writes later could find that another process has written in between.
    event.listen(engine, "begin", _begin)
    return engine


def _begin(connection: Connection) -> None:
    only_reads = connection.get_execution_options().get(_READS, False)
    connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")


@contextmanager
def _reading(engine: Engine) -> Iterator[Connection]:
    with engine.connect().execution_options(**{_READS: True}) as connection, connection.begin():
        yield connection


def _migrate(engine: Engine, runs: Path) -> None:
    """Bring the tables to the newest version, once per process and database."""
    if engine in _MIGRATED:
        return
    with _reading(engine) as connection:
        current = _version(connection) == VERSION
    if not current:
        _upgrade(engine, runs)
    _MIGRATED.add(engine)


def _upgrade(engine: Engine, runs: Path) -> None:
    """Create the tables, or migrate them, while no other process does."""
    with engine.begin() as connection:
        _wait_for_writers(connection, _MIGRATION_LOCK)
        found = _version(connection)
        if found is None:
            _create(connection)
        elif found != VERSION:
            from adctl.tracking import migrate

            migrate.upgrade(connection, found, where(runs))


_MIGRATED: set[Any] = set()


def _wait_for_writers(connection: Connection, lock: int) -> None:
    """Wait until no other transaction has the lock, and hold it until this one ends; SQLite has waited already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})


def _create(connection: Connection) -> None:
    """Create the newest tables at once, as all migrations would."""
    METADATA.create_all(connection)
    VERSIONS.create(connection)
    connection.execute(insert(VERSIONS), {"version_num": VERSION})


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSIONS.name):
        return None
    return connection.execute(select(VERSIONS.c.version_num)).scalar()


def where(runs: Path) -> str:
    """Return the place of the database for messages; no password is shown."""
    url = os.environ.get(VARIABLE)
    return str(runs / FILE) if url is None else f"the database {make_url(url).render_as_string(hide_password=True)}"


@contextmanager
def _errors(runs: Path) -> Iterator[None]:
    try:
        yield
    except AdctlError:
        raise
    except DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise DataError(f"Cannot use {where(runs)}: {reason}.", _remedy(reason, runs)) from error
    except SQLAlchemyError as error:
        raise DataError(f"Cannot use {where(runs)}: {error}.", _remedy("", runs)) from error


def _remedy(reason: str, runs: Path) -> str:
    if VARIABLE in os.environ:
        return f"Check {VARIABLE} and that the server runs; the run folders hold everything."
    if "malformed" in reason or "not a database" in reason:
        return (
            f"Move {runs / FILE} away, then run 'adctl runs index': the run folders hold all runs. The history of "
            "'adctl serve' is in that file alone."
        )
    return f"Check the disk and the permissions of {runs}. The run folders hold everything."
