"""Events between the processes of one server: each tells the others what it publishes, by Unix datagram sockets."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from adctl.files import to_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

_LARGEST = 1 << 16


class EventExchange:
    """Socket of one process in a folder that only the processes of this server know.

    An event that another process cannot take at once is lost for its clients: nobody waits for it.

    Args:
        folder: The folder.
        received: Function that is called with identifier, kind and facts of an event of another process.
    """

    def __init__(self, folder: Path, received: Callable[[str, str, dict[str, Any]], None]) -> None:
        self._folder = folder
        self._received = received
        self._path = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sender.setblocking(False)
        threading.Thread(target=self._listen, name="adctl-events", daemon=True).start()

    def send(self, identifier: str, kind: str, data: dict[str, Any]) -> None:
        """Tell the other processes of an event; may be called from any thread."""
        message = to_json([identifier, kind, data]).encode()
        for other in self._folder.iterdir():
            if other != self._path:
                try:
                    self._sender.sendto(message, str(other))
                except ConnectionRefusedError:  # a process that was killed
                    other.unlink(missing_ok=True)
                except OSError as error:
                    log.debug("An event did not reach another process: %s", error)

    def close(self) -> None:
        """Receive no more events."""
        self._path.unlink(missing_ok=True)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._sender.close()

    def _listen(self) -> None:
        with self._socket:
            while message := self._socket.recv(_LARGEST):
                with suppress(ValueError, TypeError):  # not an event
                    self._received(*json.loads(message))
