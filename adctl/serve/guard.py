"""Outermost layer of the server: host, size and speed of the body, and headers of every answer."""

from __future__ import annotations

import asyncio
import re
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.datastructures import Headers

from adctl.serve.problems import ProblemError, busy, of_error

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from adctl.serve.state import Server

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Content security policy: nothing inline, nothing from elsewhere."""

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]

_SCORES = re.compile(r"/v1/models/[^/]+/score|/api/(test_image|batch_test)")

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
"""Names of this machine that only itself can use."""


class Drain(NamedTuple):
    """Limit of what is still read of a refused body, so that the client gets the answer and not a broken connection.

    Attributes:
        size: Bytes.
        seconds: Time.
    """

    size: int
    seconds: float


AT_ONCE, TOO_LARGE = Drain(1 << 20, 0.03), Drain(64 << 20, 2.0)
"""Limits for a body that is probably there already, and for one that is too large and takes longer to arrive."""


class Guard:
    """ASGI middleware.

    Args:
        app: The application.
        server: Limits, allowed hosts and metrics.
    """

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it before its body is read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        identifier = self._server.history.ids.next()
        scope.setdefault("state", {})["request_id"] = identifier

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._complete(message, identifier)
            await send(message)

        refusal = self._refusal(headers) or self._overload(scope)
        if refusal is not None:
            is_large = refusal.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            await drain(receive, headers, TOO_LARGE if is_large else AT_ONCE)
            await of_error(refusal)(scope, receive, send_with_headers)
            return
        body = _Body(receive, self._server.max_upload, self._server.settings.deadline)
        await self._app(scope, body.receive, send_with_headers)

    def _complete(self, message: Message, identifier: str) -> None:
        self._server.telemetry.count(message["status"])
        add_headers(message)
        message["headers"].append((b"x-request-id", identifier.encode()))

    def _refusal(self, headers: Headers) -> ProblemError | None:
        if self._server.allowed_hosts and _host_name(headers.get("host", "")) not in self._server.allowed_hosts:
            return ProblemError(421, "This server does not answer for that host name.", "Use its own address.")
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            return ProblemError(400, "The header Content-Length is no number.")
        if int(length) > self._server.max_upload:
            self._server.telemetry.refused.labels("size").inc()
            return too_large(self._server.max_upload)
        return None

    def _overload(self, scope: Scope) -> ProblemError | None:
        """Refuse a request for scores if no image may wait any more: here it costs least."""
        admission = self._server.admission
        if admission.count < admission.limit or scope["method"] != "POST" or not _SCORES.fullmatch(scope["path"]):
            return None
        self._server.telemetry.refused.labels("queue").inc()
        return busy(f"{admission.limit} images wait already.")


def add_headers(message: Message) -> None:
    """Set the headers that every answer has, unless it has others of these names."""
    headers = message["headers"] = list(message.get("headers", ()))
    present = {name.lower() for name, _ in headers}
    headers.extend(header for header in _RAW_HEADERS if header[0] not in present)


def too_large(limit: int) -> ProblemError:
    """Return the error for a body that is too large."""
    return ProblemError(
        413,
        f"The body has more than {limit} bytes.",
        "Send fewer or smaller images, or start the server with a larger --max-upload.",
        headers={"Connection": "close"},
    )


async def drain(receive: Receive, headers: Headers, limit: Drain = AT_ONCE) -> None:
    """Read the body of a refused request, unless it states a length beyond the limit."""
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > limit.size:
        return
    read = 0
    try:
        async with asyncio.timeout(limit.seconds):
            while read <= limit.size:
                message = await receive()
                read += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def _host_name(host: str) -> str:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    return name.strip("[]").lower()


class _Body:
    """Body of a request with a limit of bytes and of time."""

    def __init__(self, receive: Receive, limit: int, seconds: float) -> None:
        self._receive = receive
        self._limit = limit
        self._until = time.monotonic() + seconds
        self._size = 0
        self._whole = False

    async def receive(self) -> Any:
        """Return the next message of the server.

        Raises:
            ProblemError: The body is too large or comes too slowly.
        """
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._until - time.monotonic()):
                message = await self._receive()
        except TimeoutError as error:
            close = {"Connection": "close"}
            raise ProblemError(408, "The body of the request came too slowly.", headers=close) from error
        self._size += len(message.get("body", b""))
        if self._size > self._limit:
            if message.get("more_body", False):
                await drain(self._receive, Headers(), TOO_LARGE)
            raise too_large(self._limit)
        self._whole = not message.get("more_body", False)
        return message
