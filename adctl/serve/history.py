"""Verdicts, reviews, the models in use and the audit log, in the run database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, desc, func, insert, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from adctl.serve.ids import IncreasingIds
from adctl.serve.row_writer import Row, RowWriter
from adctl.tracking import database
from adctl.tracking.schema import AUDIT, REVIEWS, SERVED, VERDICTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from sqlalchemy import Connection, Select, Table

    from adctl.sinks.delivery import Outbox

NEAR = 0.05
"""Largest p-value of a near miss: an image that is good, but stranger than most."""

MESSAGE = "message"
"""Name in a row of what sinks are sent; no column."""

_INSERTS = {
    "sqlite": sqlite.insert(VERDICTS).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(VERDICTS).on_conflict_do_nothing(),
}
"""Statement that writes verdicts, unless they are there already, for each kind of database."""

_COUNTED = ("reject", "warn", "good", "error", "uncalibrated")


def now() -> str:
    """Return the time in UTC, ISO 8601, so that texts sort as times do."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Filters:
    """Conditions on verdicts; those left out do not matter.

    Attributes:
        model: Name of the model.
        verdict: Verdict.
        lot: Lot.
        since: Earliest time, ISO 8601.
        until: Latest time.
        min_score: Lowest score.
        q: Text in the name, lot or part.
        kind: Kind of defect by the classifier.
    """

    model: str | None = None
    verdict: str | None = None
    lot: str | None = None
    since: str | None = None
    until: str | None = None
    min_score: float | None = None
    q: str | None = None
    kind: str | None = None


class History:
    """Store of the server.

    Args:
        runs: Folder of the runs, with the database.
        outbox: Sinks, whose messages are written together with the verdicts; None for none.

    Raises:
        AdctlError: The database cannot be opened.
    """

    def __init__(self, runs: Path, outbox: Outbox | None = None) -> None:
        self._runs = runs
        self._outbox = outbox
        self.ids = IncreasingIds(self._last_id())
        self._writer = RowWriter(self._insert_verdicts)

    @property
    def writer(self) -> RowWriter:
        """Writer of the verdicts."""
        return self._writer

    def close(self) -> None:
        """Write what waits."""
        self._writer.close()

    def _last_id(self) -> str:
        with self._reading() as connection:
            newest = [connection.execute(select(func.max(table.c.id))).scalar() for table in (VERDICTS, SERVED, AUDIT)]
        return max(filter(None, newest), default="")

    def _reading(self) -> AbstractContextManager[Connection]:
        return database.durable_transaction(self._runs, reads=True)

    # ---- verdicts

    def _insert_verdicts(self, rows: Sequence[Row]) -> None:
        messages = [row[MESSAGE] for row in rows if MESSAGE in row]
        columns = [{name: value for name, value in row.items() if name != MESSAGE} for row in rows]
        with database.durable_transaction(self._runs) as connection:
            connection.execute(_INSERTS[connection.dialect.name], columns)
            if self._outbox is not None:
                self._outbox.add(connection, messages)
        if self._outbox is not None:
            self._outbox.wake()

    def requests_of(self, clients: Sequence[str]) -> set[str]:
        """Return the identifiers of the requests of some clients.

        Raises:
            AdctlError: The database cannot be read.
        """
        query = select(VERDICTS.c.request).where(VERDICTS.c.client.in_(clients), VERDICTS.c.request != "")
        with self._reading() as connection:
            return set(connection.execute(query).scalars())

    def find(self, filters: Filters, cursor: str | None, limit: int) -> tuple[list[Row], str | None]:
        """Return verdicts, the newest first, each with its newest review, and the cursor of the next page.

        Raises:
            AdctlError: The database cannot be read.
        """
        query = select(VERDICTS).where(*_conditions(filters)).order_by(desc(VERDICTS.c.id)).limit(limit + 1)
        if cursor is not None:
            query = query.where(VERDICTS.c.id < cursor)
        rows = self._with_reviews(query)
        return rows[:limit], rows[limit - 1]["id"] if len(rows) > limit else None

    def get(self, identifier: str) -> Row | None:
        """Return one verdict with its newest review; None if there is none."""
        rows = self._with_reviews(select(VERDICTS).where(VERDICTS.c.id == identifier))
        return rows[0] if rows else None

    def queue(self, model: str | None, limit: int) -> list[Row]:
        """Return rejects and near misses without a review; those nearest to the threshold, which teach most, first."""
        reviewed = select(REVIEWS.c.id).where(REVIEWS.c.verdict_id == VERDICTS.c.id).exists()
        near = or_(VERDICTS.c.verdict.in_(("reject", "warn")), VERDICTS.c.p_value <= NEAR)
        query = select(VERDICTS).where(near, ~reviewed)
        if model is not None:
            query = query.where(VERDICTS.c.model == model)
        distance = func.abs(VERDICTS.c.score - VERDICTS.c.threshold)
        return self._with_reviews(query.order_by(distance, desc(VERDICTS.c.id)).limit(limit))

    def scores(self, model: str, limit: int) -> list[float]:
        """Return the newest scores of a model, the newest first."""
        query = select(VERDICTS.c.score).where(VERDICTS.c.model == model, VERDICTS.c.score.is_not(None))
        with self._reading() as connection:
            return list(connection.execute(query.order_by(desc(VERDICTS.c.id)).limit(limit)).scalars())

    def counts(self, filters: Filters) -> dict[str, int]:
        """Return the number of verdicts of each kind that meet the conditions."""
        query = select(VERDICTS.c.verdict, func.count()).where(*_conditions(filters)).group_by(VERDICTS.c.verdict)
        with self._reading() as connection:
            found = {verdict: count for verdict, count in connection.execute(query)}  # noqa: C416 - rows are no pairs
        return {verdict: found.get(verdict, 0) for verdict in _COUNTED}

    def remove_before(self, identifier: str) -> int:
        """Remove the verdicts before an identifier; return their number. Reviews stay."""
        with database.durable_transaction(self._runs) as connection:
            return connection.execute(delete(VERDICTS).where(VERDICTS.c.id < identifier)).rowcount

    def _with_reviews(self, query: Select[Any]) -> list[Row]:
        with self._reading() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
            reviews = select(REVIEWS).where(REVIEWS.c.verdict_id.in_([row["id"] for row in rows])).order_by("id")
            newest = {row["verdict_id"]: dict(row) for row in connection.execute(reviews).mappings()} if rows else {}
        return [{**row, "review": newest.get(row["id"])} for row in rows]

    # ---- reviews

    def add_review(self, row: Row) -> Row:
        """Add a review, and return it with its identifier and time."""
        return self._add(REVIEWS, {**row, "time": now()})

    def review(self, identifier: str) -> Row | None:
        """Return one review; None if there is none."""
        with self._reading() as connection:
            found = connection.execute(select(REVIEWS).where(REVIEWS.c.id == identifier)).mappings().first()
            return dict(found) if found else None

    def remove_review(self, identifier: str) -> None:
        """Remove a review; the one before it counts again."""
        with database.durable_transaction(self._runs) as connection:
            connection.execute(delete(REVIEWS).where(REVIEWS.c.id == identifier))

    def reviews(
        self, model: str | None, label: str | None, cursor: str | None, limit: int
    ) -> tuple[list[Row], str | None]:
        """Return the newest review of each verdict, the newest first, and the cursor of the next page."""
        newest = select(func.max(REVIEWS.c.id)).group_by(REVIEWS.c.verdict_id)
        query = select(REVIEWS).where(REVIEWS.c.id.in_(newest)).order_by(desc(REVIEWS.c.id)).limit(limit + 1)
        for column, value in ((REVIEWS.c.model, model), (REVIEWS.c.label, label)):
            if value is not None:
                query = query.where(column == value)
        if cursor is not None:
            query = query.where(REVIEWS.c.id < cursor)
        with self._reading() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
        return rows[:limit], rows[limit - 1]["id"] if len(rows) > limit else None

    # ---- models in use

    def add_served(self, row: Row) -> Row:
        """Add the model version and threshold that a name has from now on."""
        return self._add(SERVED, {**row, "since": now()})

    def served(self, name: str) -> list[Row]:
        """Return the versions and thresholds that a name had, the newest first."""
        query = select(SERVED).where(SERVED.c.name == name).order_by(desc(SERVED.c.id))
        with self._reading() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    # ---- audit

    def note(self, who: str, action: str, target: str, **details: Any) -> None:
        """Write down that somebody did something."""
        row = {"who": who, "action": action, "target": target, "details": details, "time": now()}
        self._add(AUDIT, row)

    def audit(self, limit: int) -> list[Row]:
        """Return the newest entries of the audit log, the newest first."""
        with self._reading() as connection:
            rows = connection.execute(select(AUDIT).order_by(desc(AUDIT.c.id)).limit(limit)).mappings()
            return [dict(row) for row in rows]

    def _add(self, table: Table, row: Row) -> Row:
        whole = {"id": self.ids.next(), **row}
        with database.durable_transaction(self._runs) as connection:
            connection.execute(insert(table), whole)
        return whole


def _conditions(filters: Filters) -> list[Any]:
    columns = VERDICTS.c
    equal = ("model", "verdict", "lot", "kind")
    found: list[Any] = [columns[name] == value for name in equal if (value := getattr(filters, name)) is not None]
    if filters.since is not None:
        found.append(columns.time >= filters.since)
    if filters.until is not None:
        found.append(columns.time <= filters.until)
    if filters.min_score is not None:
        found.append(columns.score >= filters.min_score)
    if filters.q:
        found.append(
            or_(*(column.contains(filters.q, autoescape=True) for column in (columns.name, columns.lot, columns.part)))
        )
    return [and_(*found)] if found else []
