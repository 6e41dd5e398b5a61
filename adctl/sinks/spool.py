"""The spool: verdicts that wait for a sink, in the run database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from adctl.tracking import database
from adctl.tracking.schema import SPOOL

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from sqlalchemy import Connection


def add(connection: Connection, sinks: Collection[str], messages: Sequence[dict[str, Any]]) -> None:
    """Add messages for several sinks, inside the transaction of a connection; those that wait already are left out.

    Args:
        connection: Connection in a transaction of `database.durable_transaction`.
        sinks: Names of the sinks.
        messages: Verdicts, as `PartVerdict.to_json` gives them.
    """
    rows = [{"sink": sink, "verdict_id": message["id"], "body": message} for message in messages for sink in sinks]
    if rows:
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        connection.execute(dialect.insert(SPOOL).on_conflict_do_nothing(), rows)


def oldest(runs: Path, sink: str, limit: int) -> list[tuple[int, dict[str, Any]]]:
    """Return the number and the message of the oldest entries of a sink.

    Raises:
        AdctlError: The database cannot be read.
    """
    query = select(SPOOL.c.number, SPOOL.c.body).where(SPOOL.c.sink == sink).order_by(SPOOL.c.number).limit(limit)
    with database.durable_transaction(runs, reads=True) as connection:
        return [(number, body) for number, body in connection.execute(query)]


def remove(runs: Path, numbers: Sequence[int]) -> None:
    """Remove entries that are delivered; after a power failure, the last may be there again, and are sent again.

    Raises:
        AdctlError: The database cannot be written.
    """
    with database.kept_transaction(runs) as connection:
        connection.execute(delete(SPOOL).where(SPOOL.c.number.in_(numbers)))


def count(runs: Path, sink: str) -> int:
    """Return the number of messages that wait for a sink.

    Raises:
        AdctlError: The database cannot be read.
    """
    with database.durable_transaction(runs, reads=True) as connection:
        return connection.execute(select(func.count()).where(SPOOL.c.sink == sink)).scalar_one()
