"""Sink that writes each verdict to variables of an OPC UA server.

The variables are PREFIX and `Id`, `Part`, `Lot`, `Verdict` (String), `Score` (Double), `Reject` (Boolean), `Number` and
`Heartbeat` (UInt32). All of a verdict are written in one request; `Number` changes with each, not
if one is repeated.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from adctl.errors import MissingExtraError
from adctl.sinks.base import REJECTED, DeliveryError, Sink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.sinks.address import Address

_TIMEOUT = 4.0
_LARGEST = 0xFFFFFFFF


class OpcUaSink(Sink):
    """Server; options: `node`, the prefix of the variables' identifiers, and `max_age` 5 seconds."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        address.require_known("node", "max_age")
        self.max_age = address.option("max_age", 5.0)
        self._prefix = address.option("node", "ns=2;s=adctl.")
        try:
            import asyncua
            import asyncua.sync
        except ImportError as error:
            raise MissingExtraError("asyncua", "opcua") from error
        self._asyncua, self._sync = asyncua, asyncua.sync
        self._client: Any = None
        self._number = self._beats = 0
        self._tried = ""

    def send(self, messages: Sequence[dict[str, Any]]) -> None:
        """Write the variables of each message."""
        for number, message in enumerate(messages):
            try:
                self._write(self._values(message))
            except DeliveryError as error:
                raise DeliveryError(str(error), number) from error

    def beat(self) -> None:
        """Change the heartbeat."""
        self._beats = (self._beats + 1) & _LARGEST
        self._write({"Heartbeat": (self._beats, "UInt32")})

    def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):  # the connection may be broken already
                client.disconnect()

    def _values(self, message: dict[str, Any]) -> dict[str, tuple[Any, str]]:
        if message["id"] != self._tried:  # a verdict whose answer was lost comes again, with its number
            self._number = self._number % _LARGEST + 1
        self._tried = message["id"]
        score = math.nan if message["score"] is None else message["score"]
        texts = {name.capitalize(): (message[name], "String") for name in ("id", "part", "lot", "verdict")}
        return {
            **texts,
            "Score": (score, "Double"),
            "Reject": (message["verdict"] in REJECTED, "Boolean"),
            "Number": (self._number, "UInt32"),
        }

    def _write(self, values: dict[str, tuple[Any, str]]) -> None:
        ua = self._asyncua.ua
        try:
            client = self._connected()
            nodes = [client.get_node(f"{self._prefix}{name}") for name in values]
            client.write_values(
                nodes, [ua.DataValue(ua.Variant(value, ua.VariantType[kind])) for value, kind in values.values()]
            )
        except Exception as error:
            self.close()
            raise DeliveryError(f"{error or type(error).__name__} (variables {self._prefix}*)") from error

    def _connected(self) -> Any:
        if self._client is None:
            url = f"opc.tcp://{self.address.host}:{self.address.port}{self.address.path}"
            client = self._sync.Client(url, timeout=_TIMEOUT, sync_wrapper_timeout=2 * _TIMEOUT)
            self._client = client  # its thread must be stopped even if it cannot connect
            if self.address.user:
                client.set_user(self.address.user)
                client.set_password(self.address.password)
            client.connect()
        return self._client
