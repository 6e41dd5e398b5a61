"""Group commit: rows that wait are written in one transaction, and a caller learns when its row is durable.

If the database cannot be written, the rows wait in memory, up to a bound, and are tried again; callers do not wait.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeAlias

from adctl.errors import AdctlError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)

Row: TypeAlias = dict[str, Any]
_Entry: TypeAlias = "tuple[Row, Future[bool]]"

_AT_ONCE = 500
"""Rows in one transaction."""

_RETRY_SECONDS = 1.0

_STALLED_SECONDS = 1.0
"""Seconds of one write after which callers wait no longer."""

_SPOOL = 10_000
"""Rows that may wait for the database; the oldest beyond them are lost."""


class RowWriter:
    """Thread that writes rows.

    Args:
        write: Function that writes rows durably in one transaction; it ignores rows that are there already, because a
            commit may succeed although it seemed to fail.
    """

    def __init__(self, write: Callable[[Sequence[Row]], None]) -> None:
        self._write = write
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._spool: deque[Row] = deque()
        self._lost = 0
        self._failed_at: float | None = None
        self._began: float | None = None
        self._reason = ""
        self._thread = threading.Thread(target=self._run, name="adctl-history", daemon=True)
        self._thread.start()

    @property
    def missing(self) -> int:
        """Number of rows that the database lacks, because it could not be written."""
        return len(self._spool) + self._lost + (self._queue.qsize() if self._stalled else 0)

    @property
    def reason(self) -> str:
        """Reason why the database cannot be written; empty if it can."""
        return self._reason

    def add(self, row: Row) -> Future[bool]:
        """Queue a row; the result is True when it is durable, and False if it waits for the database."""
        future: Future[bool] = Future()
        if self._stalled:
            future.set_result(False)
        self._queue.put((row, future))
        return future

    @property
    def _stalled(self) -> bool:
        began = self._began
        return began is not None and time.monotonic() - began > _STALLED_SECONDS

    def close(self, seconds: float = 10.0) -> None:
        """Write what waits, and end the thread; rows that cannot be written are lost and logged."""
        self._queue.put(None)
        self._thread.join(seconds)
        if self.missing:
            log.error("The history misses %d verdicts: %s", self.missing, self._reason)

    def _run(self) -> None:
        ends = False
        while not ends:
            entries, ends = self._next()
            waits = self._failed_at is not None and time.monotonic() - self._failed_at < _RETRY_SECONDS
            written = (not waits or ends) and self._try([*self._spool, *(row for row, _ in entries)])
            if written:
                self._spool.clear()
            else:
                self._keep([row for row, _ in entries])
            for _, future in entries:
                if not future.done():
                    future.set_result(written)

    def _next(self) -> tuple[list[_Entry], bool]:
        """Wait for an entry, and return all that wait, and whether the thread shall end."""
        entries: list[_Entry] = []
        try:
            entry = self._queue.get(timeout=_RETRY_SECONDS if self._spool else None)
            while entry is not None:
                entries.append(entry)
                if len(entries) == _AT_ONCE:
                    return entries, False
                entry = self._queue.get_nowait()
        except queue.Empty:
            return entries, False
        return entries, True

    def _try(self, rows: list[Row]) -> bool:
        self._began = time.monotonic()
        try:
            for start in range(0, len(rows), _AT_ONCE):
                self._write(rows[start : start + _AT_ONCE])
        except Exception as error:  # noqa: BLE001 - whatever the database does, verdicts go on
            if self._failed_at is None:
                log.error("The history cannot be written: %s", error)  # noqa: TRY400 - a message, no traceback
            self._failed_at = time.monotonic()
            self._reason = error.message if isinstance(error, AdctlError) else str(error)
            return False
        finally:
            self._began = None
        if self._failed_at is not None:
            log.info("The history can be written again.")
        self._failed_at, self._reason = None, ""
        return True

    def _keep(self, rows: list[Row]) -> None:
        self._spool.extend(rows)
        while len(self._spool) > _SPOOL:
            self._spool.popleft()
            self._lost += 1
