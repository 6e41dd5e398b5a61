"""Sink that posts each verdict to a web address, signed as the Standard Webhooks specification says.

The signature is `v1,` and the Base64 of HMAC-SHA256 over `ID.TIMESTAMP.BODY` with the secret of ADCTL_SINK_SECRET; see
https://www.standardwebhooks.com.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.client
import os
import ssl
import time
from typing import TYPE_CHECKING, Any

from adctl import __version__, files
from adctl.errors import UsageError
from adctl.sinks.address import SECRET_VARIABLE
from adctl.sinks.base import TIMEOUT, DeliveryError, Sink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adctl.sinks.address import Address

_GOOD_STATUS = range(200, 300)
_PREFIX = "whsec_"


class WebhookSink(Sink):
    """Web address that takes one verdict in each POST request, and answers with a status of 200 to 299."""

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._secret = _secret(os.environ.get(SECRET_VARIABLE, ""))
        self._connection: http.client.HTTPConnection | None = None

    def send(self, messages: Sequence[dict[str, Any]]) -> None:
        """Post one request for each message."""
        for number, message in enumerate(messages):
            try:
                self._post(message)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                raise DeliveryError(str(error) or type(error).__name__, number) from error
            except DeliveryError as error:
                self.close()
                raise DeliveryError(str(error), number) from error

    def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self, message: dict[str, Any]) -> None:
        self._connection = connection = self._connection or self._connect()
        body = files.to_json(message).encode()
        path = (self.address.path or "/") + self.address.options.get("query", "")
        connection.request("POST", path, body, self._headers(message["id"], body))
        response = connection.getresponse()
        response.read()
        if response.status not in _GOOD_STATUS:
            raise DeliveryError(f"it answered {response.status} {response.reason}")

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self.address.host, self.address.port
        if self.address.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT)

    def _headers(self, identifier: str, body: bytes) -> dict[str, str]:
        stamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"adctl/{__version__}",
            "webhook-id": identifier,
            "webhook-timestamp": stamp,
        }
        if self._secret:
            headers["webhook-signature"] = sign(self._secret, identifier, stamp, body)
        if self.address.user:
            credentials = f"{self.address.user}:{self.address.password}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(credentials).decode()}"
        return headers


def sign(secret: bytes, identifier: str, stamp: str, body: bytes) -> str:
    """Return the signature of a request.

    Args:
        secret: Key.
        identifier: Identifier of the message.
        stamp: Seconds since 1970, as text.
        body: Body of the request.
    """
    signed = hmac.new(secret, f"{identifier}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(signed).decode()}"


def _secret(text: str) -> bytes:
    """Return the key: a text after `whsec_` is Base64, as the specification has it; any other is the key itself."""
    if not text.startswith(_PREFIX):
        return text.encode()
    try:
        return base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except binascii.Error as error:
        raise UsageError(
            f"{SECRET_VARIABLE} starts with {_PREFIX}, but is not Base64 after it.", "Correct it."
        ) from error
