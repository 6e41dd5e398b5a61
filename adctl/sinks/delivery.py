"""Threads that send what the spool holds, one for each sink, and what they measure."""

from __future__ import annotations

import hashlib
import logging
import statistics
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from adctl import files
from adctl.errors import AdctlError
from adctl.sinks import spool
from adctl.sinks.base import DeliveryError, Sink
from adctl.sinks.opening import open_sinks
from adctl.tracking import database

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sqlalchemy import Connection

log = logging.getLogger(__name__)

_AT_ONCE = 100
"""Messages of one call of a sink."""

_POLL_SECONDS = 1.0
"""Seconds between two looks into the spool, where other processes may put messages too, and between heartbeats."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a peer that failed is tried again; the pause doubles."""

_KEPT_LATENCIES = 20_000


@dataclass(frozen=True)
class SinkStatus:
    """State of a sink.

    Attributes:
        name: Address without passwords.
        delivered: Number of verdicts that its peer has acknowledged since the start.
        waiting: Number of verdicts that wait.
        expired: Number of verdicts that were dropped, because their parts had passed long before.
        failures: Number of failed attempts.
        error: Reason why the last attempt failed; empty if it did not.
        median_ms: Median time from the trigger of a part to the acknowledgement, milliseconds; None for no part yet.
        p95_ms: 95th percentile of these times.
        max_ms: Longest of these times.
    """

    name: str
    delivered: int
    waiting: int
    expired: int
    failures: int
    error: str
    median_ms: float | None
    p95_ms: float | None
    max_ms: float | None


class Outbox:
    """Sinks of one process.

    Args:
        runs: Folder of the runs, with the database that holds the spool.
        addresses: Addresses of the sinks.
        observe: Function that is called with the name of a sink and the seconds from a part's trigger to its
            acknowledgement.

    Raises:
        UsageError: An address is not valid.
        MissingExtraError: A package is not installed.
        AdctlError: The database cannot be opened.
    """

    def __init__(
        self, runs: Path, addresses: Sequence[str], observe: Callable[[str, float], None] = lambda *_: None
    ) -> None:
        self._runs = runs
        triggers = _Triggers()
        self._triggers = triggers
        self._deliveries = [_Delivery(runs, sink, triggers, observe) for sink in open_sinks(addresses)]
        self._names = [delivery.name for delivery in self._deliveries]
        for delivery in self._deliveries:
            if waiting := spool.count(runs, delivery.name):
                log.info("Verdicts that still wait for %s: %d.", delivery.name, waiting)
        for delivery in self._deliveries:
            delivery.start()

    def __bool__(self) -> bool:
        return bool(self._deliveries)

    def trigger(self, identifier: str, moment: float) -> None:
        """Note when the part of a verdict was triggered, by `time.monotonic`."""
        if self:
            self._triggers.put(identifier, moment)

    def add(self, connection: Connection, messages: Sequence[dict[str, Any]]) -> None:
        """Add messages inside the transaction of a connection; call `wake` after it."""
        spool.add(connection, self._names, messages)

    def put(self, messages: Sequence[dict[str, Any]]) -> None:
        """Add messages; when this returns, they are on the disk.

        Raises:
            AdctlError: The database cannot be written.
        """
        if self:
            with database.durable_transaction(self._runs) as connection:
                self.add(connection, messages)
            self.wake()

    def wake(self) -> None:
        """Let the threads look into the spool now."""
        for delivery in self._deliveries:
            delivery.wake()

    def status(self) -> tuple[SinkStatus, ...]:
        """Return the state of each sink."""
        return tuple(delivery.status() for delivery in self._deliveries)

    def close(self, seconds: float = 10.0) -> None:
        """Send what waits, for at most some seconds, and end the threads; what then waits stays in the spool."""
        deadline = time.monotonic() + seconds
        for delivery in self._deliveries:
            delivery.end()
        for delivery in self._deliveries:
            delivery.join(deadline)


class _Triggers:
    """Times of the newest triggers, by the identifiers of their verdicts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moments: OrderedDict[str, float] = OrderedDict()

    def put(self, identifier: str, moment: float) -> None:
        with self._lock:
            self._moments[identifier] = moment
            if len(self._moments) > _KEPT_LATENCIES:
                self._moments.popitem(last=False)

    def age(self, message: dict[str, Any], now: float) -> float | None:
        """Return the seconds since the trigger of a verdict of this process; None for others."""
        with self._lock:
            moment = self._moments.get(message["id"])
        return None if moment is None else now - moment


class _Delivery:
    """Thread of one sink. A lock file lets only one process of a machine send, so that the order is kept."""

    def __init__(self, runs: Path, sink: Sink, triggers: _Triggers, observe: Callable[[str, float], None]) -> None:
        self.name = sink.address.name
        self._runs, self._sink, self._triggers, self._observe = runs, sink, triggers, observe
        files.make_folder(runs)
        self._lock = FileLock(
            runs / f".sink-{hashlib.sha256(self.name.encode(errors='surrogatepass')).hexdigest()[:16]}.lock"
        )
        self._latencies: deque[float] = deque(maxlen=_KEPT_LATENCIES)
        self._delivered = self._expired = self._failures = 0
        self._error = ""
        self._pause = 0.0
        self._wake, self._ends, self._stops = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"adctl-sink-{sink.address.scheme}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def end(self) -> None:
        self._ends.set()
        self._wake.set()

    def join(self, deadline: float) -> None:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._stops.set()
        self._wake.set()
        self._thread.join(1.0)
        if waiting := self._waiting():
            log.warning("Verdicts that still wait for %s: %d. The next start sends them.", self.name, waiting)

    def status(self) -> SinkStatus:
        times = sorted(1000 * seconds for seconds in tuple(self._latencies))
        found = (statistics.median(times), times[int(0.95 * (len(times) - 1))], times[-1]) if times else (None,) * 3
        return SinkStatus(
            self.name, self._delivered, self._waiting(), self._expired, self._failures, self._error, *found
        )

    def _waiting(self) -> int:
        try:
            return spool.count(self._runs, self.name)
        except AdctlError:
            return 0

    def _run(self) -> None:
        while not self._stops.is_set():
            try:
                self._lock.acquire(timeout=0)
                break
            except Timeout:
                if self._ends.is_set():  # another process sends what is left
                    return
                self._stops.wait(_POLL_SECONDS)
            except (NotImplementedError, OSError) as error:
                log.warning("There is no lock for %s (%s): let no other process send there.", self.name, error)
                break
        try:
            self._send_all()
        finally:
            self._lock.release()
            self._sink.close()

    def _send_all(self) -> None:
        beat_due = 0.0
        while not self._stops.is_set():
            self._wake.clear()
            try:
                sent = self._send_some()
                if time.monotonic() >= beat_due:
                    beat_due = time.monotonic() + _POLL_SECONDS
                    self._sink.beat()
            except Exception as error:  # noqa: BLE001 - whatever a peer does, the next turn tries again
                self._failed(error)
                continue
            self._succeeded()
            # Fewer than asked for: the spool held no more, unless a call of `wake` has come since.
            if sent < _AT_ONCE and not self._wake.is_set():
                if self._ends.is_set():
                    return
                self._wake.wait(_POLL_SECONDS)

    def _send_some(self) -> int:
        """Send the oldest messages, and return their number."""
        entries = spool.oldest(self._runs, self.name, _AT_ONCE)
        if not entries:
            return 0
        fresh = [entry for entry in entries if not self._is_stale(entry[1])]
        delivered = len(fresh)
        try:
            if fresh:
                self._sink.send([message for _, message in fresh])
        except DeliveryError as error:
            delivered = error.delivered
            raise
        finally:
            # Those that the peer took and those that came too late are removed; the rest is sent again.
            kept = {number for number, _ in fresh[delivered:]}
            self._remove([number for number, _ in entries if number not in kept])
            self._expired += len(entries) - len(fresh)
            self._count([message for _, message in fresh[:delivered]])
        return len(entries)

    def _remove(self, numbers: list[int]) -> None:
        if numbers:
            spool.remove(self._runs, numbers)

    def _count(self, messages: list[dict[str, Any]]) -> None:
        self._delivered += len(messages)
        now = time.monotonic()
        for message in messages:
            seconds = self._triggers.age(message, now)
            if seconds is not None:
                self._latencies.append(seconds)
                self._observe(self.name, seconds)

    def _is_stale(self, message: dict[str, Any]) -> bool:
        if not self._sink.max_age:
            return False
        age = self._triggers.age(message, time.monotonic())
        if age is None:
            age = (datetime.now(UTC) - datetime.fromisoformat(message["time"])).total_seconds()
        # A time in the future says only that a clock was set.
        return not 0 <= age <= self._sink.max_age

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        reason = str(error) or type(error).__name__
        if not self._error:
            log.warning("%s does not take verdicts: %s. They wait, and are sent again.", self.name, reason)
        self._error = reason
        self._pause = min(_LONGEST_PAUSE, max(_FIRST_PAUSE, 2 * self._pause))
        if self._ends.is_set():
            self._stops.wait(_FIRST_PAUSE)
        else:
            self._ends.wait(self._pause)

    def _succeeded(self) -> None:
        if self._error:
            log.info("%s takes verdicts again.", self.name)
        self._error, self._pause = "", 0.0
