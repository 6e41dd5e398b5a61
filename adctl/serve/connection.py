"""Connections of the server: uvicorn's HTTP protocol with limits of time and size for the headers.

The parser in C takes a third of the time that the one in Python takes; it is used where its package is installed.
"""

from __future__ import annotations

import importlib.util
import socket
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

HEADER_SECONDS = 10.0
"""Longest time from the first byte of a request, or from the beginning of a connection, to the end of its headers."""

_HEADER_BYTES = 1 << 16


class _Deadline:
    """Closes a connection if headers come too slowly; a client could otherwise hold it for ever."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, connection: Any) -> None:
        """Begin to wait for headers."""
        self._timer = connection.loop.call_later(HEADER_SECONDS, connection.transport.close)

    def end(self) -> None:
        """Stop waiting."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __bool__(self) -> bool:
        return self._timer is not None


def _send_at_once(transport: Any) -> None:
    """Send small packets without delay: asyncio does it only for sockets that name their protocol."""
    peer = transport.get_extra_info("socket")
    if peer is not None and peer.family in (socket.AF_INET, socket.AF_INET6):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # otherwise, an answer is 40 ms late


class PlainConnection(H11Protocol):
    """Connection whose requests are parsed in Python."""

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for headers."""
        _send_at_once(transport)
        super().connection_made(transport)
        self._deadline = _Deadline()
        self._deadline.begin(self)

    def data_received(self, data: bytes) -> None:
        """Take bytes; stop waiting when the headers are complete."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._deadline.end()
        elif not self._deadline and self.conn.trailing_data[0]:
            self._deadline.begin(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._deadline.end()
        super().connection_lost(exc)


Connection: type[Any] = PlainConnection
"""Class of the server's connections."""

if importlib.util.find_spec("httptools") is not None:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class FastConnection(HttpToolsProtocol):
        """Connection whose requests are parsed in C."""

        def connection_made(self, transport: Any) -> None:
            """Begin to wait for headers."""
            _send_at_once(transport)
            super().connection_made(transport)
            self._deadline = _Deadline()
            self._deadline.begin(self)
            self._header_bytes = 0

        def data_received(self, data: bytes) -> None:
            """Take bytes; close a connection whose headers are too long, which the parser would collect without end."""
            if self._deadline:
                self._header_bytes += len(data)
                if self._header_bytes - len(data) > _HEADER_BYTES:
                    self.transport.close()
                    return
            super().data_received(data)

        def on_message_begin(self) -> None:
            """Begin to wait for the rest of the headers."""
            super().on_message_begin()
            if not self._deadline:
                self._deadline.begin(self)
            self._header_bytes = 0

        def on_headers_complete(self) -> None:
            """Stop waiting."""
            self._deadline.end()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            """Stop waiting."""
            self._deadline.end()
            super().connection_lost(exc)

    Connection = FastConnection
