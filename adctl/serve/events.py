"""Events of the server for pages that watch: verdicts, drift, models and reviews."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adctl.files import to_json
from adctl.serve.event_exchange import EventExchange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_KEPT = 1000
"""Events that a client which comes back can still get."""

_WAITING = 500
"""Events that may wait for a slow client; it then loses the oldest."""


@dataclass(frozen=True)
class Event:
    """One event.

    Attributes:
        id: Increasing identifier.
        kind: `verdict`, `drift`, `model` or `review`.
        data: JSON-safe facts.
    """

    id: str
    kind: str
    data: dict[str, Any]

    def message(self) -> dict[str, str]:
        """Return the event as a message of server-sent events."""
        return {"id": self.id, "event": self.kind, "data": to_json(self.data)}


class Events:
    """Sends each event to all clients that listen, and keeps the last ones for those that come back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: deque[Event] = deque(maxlen=_KEPT)
        self._clients: dict[asyncio.Queue[Event], asyncio.AbstractEventLoop] = {}
        self._exchange: EventExchange | None = None

    def share(self, folder: Path) -> None:
        """Send events to the other processes of the server too, and theirs to the clients of this one.

        Args:
            folder: Folder that only these processes know.
        """
        self._exchange = EventExchange(folder, self._deliver)

    def close(self) -> None:
        """End the exchange with other processes."""
        if self._exchange is not None:
            self._exchange.close()

    def publish(self, identifier: str, kind: str, data: dict[str, Any]) -> None:
        """Send an event; may be called from any thread."""
        self._deliver(identifier, kind, data)
        if self._exchange is not None:
            self._exchange.send(identifier, kind, data)

    def _deliver(self, identifier: str, kind: str, data: dict[str, Any]) -> None:
        event = Event(identifier, kind, data)
        with self._lock:
            self._kept.append(event)
            clients = list(self._clients.items())
        for queue, loop in clients:
            loop.call_soon_threadsafe(_put, queue, event)

    async def listen(self, after: str | None) -> AsyncIterator[dict[str, str]]:
        """Yield the kept events after an identifier, then events as they come, until the client leaves.

        Args:
            after: Identifier of the last event that the client has; None sends new events only.
        """
        queue: asyncio.Queue[Event] = asyncio.Queue(_WAITING)
        with self._lock:
            missed = [event for event in self._kept if after is not None and event.id > after]
            self._clients[queue] = asyncio.get_running_loop()
        try:
            for event in missed:
                yield event.message()
            while True:
                yield (await queue.get()).message()
        finally:
            with self._lock:
                del self._clients[queue]


def _put(queue: asyncio.Queue[Event], event: Event) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(event)
