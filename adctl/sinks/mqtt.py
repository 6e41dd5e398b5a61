"""Sink that publishes verdicts on an MQTT broker.

A retained message on TOPIC/status says `online` or `offline`; the broker itself writes `offline` when the connection
breaks.
"""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING, Any

from adctl import files
from adctl.errors import MissingExtraError, UsageError
from adctl.sinks.base import TIMEOUT, DeliveryError, Sink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.sinks.address import Address

_QUALITIES = (0, 1, 2)
_POLL_SECONDS = 0.005


class MqttSink(Sink):
    """Topic of a broker; `qos` is 1 unless the address says otherwise, `retain` 0."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        address.require_known("qos", "retain")
        self._topic = address.path.strip("/") or "adctl/verdicts"
        self._qos = address.option("qos", 1)
        self._retain = bool(address.option("retain", 0))
        if self._qos not in _QUALITIES or any(sign in self._topic for sign in "+#"):
            raise UsageError(
                f"{address.name} is no topic to publish on.", "A topic has no + or #, and its qos is 0, 1 or 2."
            )
        try:
            import paho.mqtt.client as mqtt
        except ImportError as error:
            raise MissingExtraError("paho-mqtt", "line") from error
        self._mqtt = mqtt
        self._client: Any = None

    def send(self, messages: Sequence[dict[str, Any]]) -> None:
        """Publish all messages, then wait until the broker has acknowledged each."""
        client = self._connected()
        sent = [
            client.publish(self._topic, files.to_json(message).encode(), self._qos, self._retain)
            for message in messages
        ]
        deadline = time.monotonic() + TIMEOUT
        for number, info in enumerate(sent):
            try:
                info.wait_for_publish(max(0.0, deadline - time.monotonic()))
                done = info.is_published()
            except (ValueError, RuntimeError) as error:
                self._drop()
                raise DeliveryError(str(error), number) from error
            if not done:
                self._drop()
                raise DeliveryError(f"the broker acknowledged nothing for {TIMEOUT:g} s", number)

    def beat(self) -> None:
        """Connect, so that the status topic says `online` before the first verdict."""
        self._connected()

    def close(self) -> None:
        """Say `offline` and disconnect."""
        if self._client is not None and self._client.is_connected():
            self._client.publish(f"{self._topic}/status", b"offline", 1, retain=True).wait_for_publish(1.0)
        self._drop()

    def _connected(self) -> Any:
        if self._client is not None and self._client.is_connected():
            return self._client
        self._drop()
        refusals: list[str] = []
        self._client = client = self._new_client(refusals)
        try:
            client.connect(self.address.host, self.address.port, keepalive=20)
        except OSError as error:
            self._client = None
            raise DeliveryError(str(error)) from error
        client.loop_start()
        deadline = time.monotonic() + TIMEOUT
        while not client.is_connected():
            if refusals or time.monotonic() > deadline:
                self._drop()
                raise DeliveryError(refusals[0] if refusals else f"the broker did not answer for {TIMEOUT:g} s")
            time.sleep(_POLL_SECONDS)
        client.publish(f"{self._topic}/status", b"online", 1, retain=True)
        return client

    def _new_client(self, refusals: list[str]) -> Any:
        mqtt = self._mqtt

        def connected(_client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
            if reason.is_failure:
                refusals.append(f"the broker refuses the connection: {reason}")

        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        client.on_connect = connected
        client.connect_timeout = TIMEOUT
        client.will_set(f"{self._topic}/status", b"offline", 1, retain=True)
        if self.address.user:
            client.username_pw_set(self.address.user, self.address.password)
        if self.address.scheme == "mqtts":
            client.tls_set_context(ssl.create_default_context())
        return client

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()
            client.loop_stop()
