"""Triggers: when a camera has a part before it."""

from __future__ import annotations

import http.server
import logging
import queue
import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from adctl.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

_MOVED = 16.0
"""Change in grey levels that counts as motion, against noise of the sensor and of compression."""

_LEARNING = 0.05
"""Weight of a frame in the running mean of the background."""

_TOLERANCE = 1e-6
"""Seconds of rounding: times of video files are fractions."""

_REMEDY = "Give interval=SECONDS, motion, motion=SHARE, or http=PORT."


@dataclass(frozen=True)
class Order:
    """Wish to take a part.

    Attributes:
        part: Identifier of the part; empty for the time.
        lot: Lot; empty for that of the source.
    """

    part: str = ""
    lot: str = ""


class Trigger(ABC):
    """Decides by the frames of one camera."""

    @abstractmethod
    def fires(self, grey: NDArray[np.uint8], moment: float) -> Order | None:
        """Return an order if a part is to be taken now.

        Args:
            grey: Small copy of the frame [h,w].
            moment: Time of the frame, seconds.
        """

    def request(self, order: Order) -> bool:
        """Ask for a part; return False if this trigger takes no requests."""
        del order
        return False

    def close(self) -> None:  # noqa: B027 - most hold nothing open
        """Release what the trigger holds."""


class Interval(Trigger):
    """Fires at equal intervals.

    Args:
        seconds: Length of the interval.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next: float | None = None

    def fires(self, grey: NDArray[np.uint8], moment: float) -> Order | None:
        """Return an order once an interval."""
        del grey
        if self._next is not None and moment < self._next - _TOLERANCE:
            return None
        late = self._next is None or moment - self._next > self._seconds  # after a pause, intervals start anew
        self._next = (moment if late or self._next is None else self._next) + self._seconds
        return Order()


class Motion(Trigger):
    """Fires when a part comes into view, and again only after the view was as empty as before.

    Args:
        share: Share of the picture that must differ from the background, 0 to 1.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._background: NDArray[np.float32] | None = None
        self._armed = True

    def fires(self, grey: NDArray[np.uint8], moment: float) -> Order | None:
        """Return an order when motion begins."""
        del moment
        frame = grey.astype(np.float32)
        if self._background is None:
            self._background = frame
            return None
        moved = float(np.mean(np.abs(frame - self._background) > _MOVED))
        if moved < self._share / 2:
            self._armed = True
            self._background += _LEARNING * (frame - self._background)
        if not self._armed or moved < self._share:
            return None
        self._armed = False
        return Order()


class Request(Trigger):
    """Fires for each request that `request` brings."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()

    def fires(self, grey: NDArray[np.uint8], moment: float) -> Order | None:
        """Return the oldest order that waits."""
        del grey, moment
        try:
            return self._orders.get_nowait()
        except queue.Empty:
            return None

    def request(self, order: Order) -> bool:
        """Queue an order."""
        self._orders.put(order)
        return True


class HttpRequest(Request):
    """Fires for each POST request on a port of this machine, with `part` and `lot` in its query.

    Args:
        host: Address to listen on.
        port: Port.

    Raises:
        UsageError: The port is taken.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__()
        trigger = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                trigger.request(Order(query.get("part", [""])[0], query.get("lot", [""])[0]))
                self.send_response(http.HTTPStatus.ACCEPTED)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                log.debug("Trigger: %s", arguments)

        try:
            self._server = http.server.ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise UsageError(f"Cannot listen for triggers on {host} port {port}: {error}.", _REMEDY) from error
        self.port: int = self._server.server_address[1]
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="adctl-trigger", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


def open_trigger(text: str) -> Trigger:
    """Return the trigger that a text describes; `http` without a port takes requests of this process only.

    Raises:
        UsageError: It describes none, or its port is taken.
    """
    kind, _, value = text.partition("=")
    try:
        if kind == "interval":
            return Interval(_positive(value or "1"))
        if kind == "motion":
            return Motion(_positive(value or "0.05"))
        if kind == "http" and not value:
            return Request()
        if kind == "http":
            host, _, port = value.rpartition(":")
            return HttpRequest(host or "127.0.0.1", int(port))
    except ValueError as error:
        raise UsageError(f"The trigger '{text}' has no usable number.", _REMEDY) from error
    raise UsageError(f"Unknown trigger '{text}'.", _REMEDY)


def _positive(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise ValueError
    return number
