"""Addresses of sinks, such as `mqtt://broker/line3?qos=1`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from adctl.errors import UsageError, unknown_name

PASSWORD_VARIABLE = "ADCTL_SINK_PASSWORD"  # noqa: S105 - a name, no password
"""Environment variable of the password for an address that names a user and no password."""

SECRET_VARIABLE = "ADCTL_SINK_SECRET"  # noqa: S105 - a name, no secret
"""Environment variable of the secret that signs webhooks."""

_PORTS = {"mqtt": 1883, "mqtts": 8883, "http": 80, "https": 443, "modbus-tcp": 502, "opc.tcp": 4840}
_REMEDY = (
    "Write mqtt://HOST/TOPIC, mqtts://..., http(s)://HOST/PATH for a webhook, modbus-tcp://HOST, opc.tcp://HOST/PATH, "
    "or csv:FILE."
)

T = TypeVar("T", int, float, str)


@dataclass(frozen=True)
class Address:
    """Parts of an address.

    Attributes:
        scheme: Kind of sink.
        host: Host name; empty for a file.
        port: Port.
        user: User name, or empty.
        password: Password, or empty.
        path: Path after the host, or the file.
        options: Texts after the question mark, by name.
    """

    scheme: str
    host: str = ""
    port: int = 0
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    path: str = ""
    options: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Address without user, password and options, for messages and the spool."""
        if self.scheme == "csv":
            return f"csv:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"

    def option(self, name: str, default: T) -> T:
        """Return an option in the type of its default.

        Raises:
            UsageError: It is not such a number.
        """
        text = self.options.get(name)
        if text is None:
            return default
        try:
            return type(default)(text)
        except ValueError as error:
            raise UsageError(
                f"The option {name} of {self.name} is '{text}', which is not a number.", "Correct it."
            ) from error

    def require_known(self, *known: str) -> None:
        """Raise if there is an option that the sink does not have.

        Raises:
            UsageError: There is one.
        """
        for name in self.options:
            if name not in known:
                raise unknown_name(f"option of {self.name}", name, known)


def parse_address(text: str) -> Address:
    """Parse the address of a sink.

    Raises:
        UsageError: It is no address of a known kind.
    """
    if text.startswith("csv:") or text.endswith(".csv"):
        return Address("csv", path=str(Path(text.removeprefix("csv:")).absolute()))
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"'{text}' is no address of a sink: {error}.", _REMEDY) from error
    if parts.scheme not in _PORTS or not parts.hostname:
        raise UsageError(f"'{text}' is no address of a sink.", _REMEDY)
    # A node of OPC UA holds equals signs and semicolons, which a query keeps.
    options = dict(parse_qsl(parts.query, keep_blank_values=True)) if parts.scheme not in {"http", "https"} else {}
    query = f"?{parts.query}" if parts.query and parts.scheme in {"http", "https"} else ""
    user = unquote(parts.username or "")
    password = unquote(parts.password or "") or (os.environ.get(PASSWORD_VARIABLE, "") if user else "")
    return Address(
        parts.scheme, parts.hostname, port or _PORTS[parts.scheme], user, password, parts.path,
        options | ({"query": query} if query else {}),
    )  # fmt: skip
